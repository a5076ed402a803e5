"""Whatever can be wrong with clips, with questions about them and with flags: one line each, before long work."""

from pathlib import Path

import pytest
from clip_helpers import REDUCED, change, loader, published
from run_helpers import error_of, read
from tiny_video import draw_clip, write_clip, write_sound

from llava.eval import model_vqa_video, run_inference_video_qa
from llava.video import read_clip
from vscan.io.frames import read_frames

ROOT = Path(__file__).resolve().parents[2]


def spoilt(clip_data, kind):
    """Put a file that is no whole clip in the place of clip1; what is said of it, after its path."""
    file = clip_data / "videos" / "clip1.mp4"
    content = file.read_bytes()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "no clip":
        file.write_text("no clip")
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "sound":
        write_sound(file)
        return "expected a video, got a file without moving pictures"
    elif kind == "cut behind its header":
        frames, _ = read_frames(file, lambda number, rate: range(number))
        content = write_clip(file, frames, movflags="faststart").read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
        return "expected a whole video, got "
    return "expected a whole video that FFmpeg can read, got Invalid data found when processing input"


@pytest.mark.parametrize("kind", ["empty", "no clip", "cut", "sound", "cut behind its header"])
def test_a_broken_clip_is_one_line_that_names_it_or_is_skipped(video_checkpoint, clip_data, kind, monkeypatch, capsys):
    expected = spoilt(clip_data, kind)
    file = clip_data / "videos" / "clip1.mp4"
    command = loader(video_checkpoint, clip_data, *REDUCED)
    error = error_of(model_vqa_video.main, command, monkeypatch, capsys)
    assert error.startswith(f"error: row 1, question v_1: {file}: {expected}")
    assert len(read(clip_data / "a.jsonl")) == 1
    if kind in ("empty", "cut behind its header"):
        model_vqa_video.main([*command, "--on-error", "skip"])
        skipped = read(clip_data / "a.jsonl.skipped.jsonl")
        assert [row["row"] for row in skipped] == [1, 4]
        assert all(row["error"].startswith(f"{file}: {expected}") for row in skipped)
        assert [row["question_id"] for row in read(clip_data / "a.jsonl")] == ["v_0", "v_2", "v_3", "v_5"]


@pytest.mark.parametrize("ending", ["avi", "mkv", "mov"])
def test_a_clip_that_was_cut_is_told_in_every_container(tmp_path, ending):
    frames, _ = read_frames(draw_clip(tmp_path / "c.mp4", seed=0), lambda number, rate: range(number))
    file = write_clip(tmp_path / f"c.{ending}", frames)
    assert len(read_clip(file)) == 8
    content = file.read_bytes()
    for share in (0.4, 0.7, 0.9):
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=rf"c\.{ending}: expected a (whole )?video"):
            read_clip(file)


WRONG = {
    "an unknown id": ("test_a.json", lambda rows: rows[0].update(question_id="v_9"), "got one to 'v_9'"),
    "no answer": (
        "test_a.json",
        lambda rows: rows.pop(),
        "to every question of test_q.json, 1 have none, such as v_0",
    ),
    "an answer twice": ("test_a.json", lambda rows: rows.append(rows[0]), "ids that come once, got 2 times 'v_5'"),
    "a question twice": ("test_q.json", lambda rows: rows.append(rows[0]), "ids that come once, got 2 times 'v_0'"),
    "no clip's name": ("test_q.json", lambda rows: rows[2].pop("video_name"), "entry 2: expected video_name (str)"),
    "an empty name": (
        "test_q.json",
        lambda rows: rows[2].update(video_name=""),
        "entry 2: expected the name of a",
    ),
    "a way out": ("test_q.json", lambda rows: rows[2].update(video_name="../x"), "a video inside the video folder"),
    "no question": ("test_q.json", lambda rows: rows.clear(), "expected at least one question, got none"),
    "no right answers": ("test_a.json", lambda rows: rows.clear(), "expected a list of questions, got '[]'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_questions_that_are_wrong_are_one_line_before_a_model_is_looked_at(clip_data, name, monkeypatch, capsys):
    file, spoil, expected = WRONG[name]
    change(clip_data / file, spoil)
    for main, command in (
        (model_vqa_video.main, loader("nowhere", clip_data)),
        (run_inference_video_qa.main, published("nowhere", clip_data)),
    ):
        error = error_of(main, command, monkeypatch, capsys)
        assert error.startswith("error: ")
        assert expected in error


def test_other_mistakes_are_one_line_each(video_checkpoint, clip_data, monkeypatch, capsys):
    def refused(*more, command=loader, main=model_vqa_video.main, model=video_checkpoint):
        return error_of(main, command(model, clip_data, *more), monkeypatch, capsys)

    assert "question file: expected a file, found none at 'none.json'" in refused("--question-file", "none.json")
    assert "truth file: expected a file, found none at 'none.json'" in refused("--truth-file", "none.json")
    assert "video folder: expected a folder, found none at 'none'" in refused("--video-folder", "none")
    assert "conversation template out of" in refused("--conv-mode", "v9")
    assert "model_base: expected None" in refused("--model-base", "base")
    assert "chunk-idx: expected 0 to num-chunks - 1, got 3 of 2" in refused("--num-chunks", "2", "--chunk-idx", "3")
    assert refused("--frame-cls", "drop") == "error: expected a budget beside --frame-cls, got none"
    assert "expected one of --average, --preset, or budgets" in refused(*REDUCED, "--average", "16")
    assert "model path 'nowhere': expected a checkpoint folder" in refused(model="nowhere")
    assert "expected a Video-LLaVA (mm_video_tower in its config" in refused(
        model=ROOT / "playground" / "models" / "tiny-llava"
    )
    assert "unrecognized arguments: --image-folder x" in refused("--image-folder", "x")
    main, command = run_inference_video_qa.main, published
    error = error_of(main, ["--gt-file-question", "q"], monkeypatch, capsys)
    assert "required: --gt_file_answers/--gt-file-answers, --video_dir/--video-dir" in error
    assert "expected an int of at least 1, got 'x'" in refused("--num_chunks", "x", command=command, main=main)
    for file in (clip_data / "videos").iterdir():
        file.unlink()
    assert "3 are missing: clip0, clip1, clip2" in refused(command=command, main=main)
    assert "3 are missing: clip0, clip1, clip2" in refused("--on-error", "skip")
    assert not (clip_data / "a.jsonl").exists()
    assert not (clip_data / "out").exists()
