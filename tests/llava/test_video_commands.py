"""The commands that ask about clips, on clips that are drawn: rows, batches, shards, and runs that were stopped."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clip_helpers import REDUCED, change, loader, published, words
from run_helpers import error_of, read
from tiny_video import TOKENS, draw_clip
from two_processes import STARTS, run_two

from llava.eval import model_vqa_loader, model_vqa_video, run_inference_video_qa, run_inference_video_qa_act
from llava.model import convert
from llava.video import ClipProcessor
from playground.tiny import draw
from vscan import apply
from vscan.io.frames import ClipFolder
from vscan.io.load import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(video_checkpoint, drawn_clips, tmp_path_factory):
    """Folder, rows and stats of one uninterrupted reduced run."""
    folder = Path(shutil.copytree(drawn_clips, tmp_path_factory.mktemp("whole") / "data"))
    model_vqa_video.main(loader(video_checkpoint, folder, *REDUCED))
    return folder, read(folder / "a.jsonl"), read(folder / "a.jsonl.stats.jsonl")


def texts(file):
    return [row["text"] for row in read(file)]


def test_rows_are_the_loaders_with_the_right_answer_of_the_same_id(whole):
    _, rows, stats = whole
    keys = ["question_id", "prompt", "text", "answer", "answer_id", "model_id", "metadata"]
    assert [list(row) for row in rows] == [keys] * 6
    assert [(row["question_id"], row["prompt"], row["answer"]) for row in rows] == [
        (f"v_{number}", f"what is {number}?", f"to v_{number}") for number in range(6)
    ]
    # 24 and then 8 tokens a frame, and [CLS] of each of eight frames beside them.
    assert [(row["visual_tokens"], row["stages"]) for row in stats] == [(TOKENS, [[0, 200], [4, 72]])] * 6
    assert len({row["text"] for row in rows}) > 1


def test_the_published_command_writes_the_same_answers_under_its_own_keys(video_checkpoint, clip_data, whole):
    run_inference_video_qa.main(published(video_checkpoint, clip_data, *REDUCED))
    rows = read(clip_data / "out" / "1_0.json")
    assert [list(row) for row in rows] == [["id", "question", "answer", "pred"]] * 6
    expected = [(row["question_id"], row["prompt"], row["answer"], row["text"]) for row in whole[1]]
    assert [tuple(row.values()) for row in rows] == expected


def test_without_a_truth_file_rows_have_no_right_answer_and_dense_ones_keep_all(video_checkpoint, clip_data):
    command = loader(video_checkpoint, clip_data, "--max_new_tokens", "1")
    at = command.index("--truth-file")
    model_vqa_video.main(command[:at] + command[at + 2 :])
    rows = read(clip_data / "a.jsonl")
    assert [list(row) for row in rows] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 6
    assert [row["stages"] for row in read(clip_data / "a.jsonl.stats.jsonl")] == [[[0, TOKENS]]] * 6


def test_batches_and_workers_change_no_answer(video_checkpoint, clip_data, whole):
    model_vqa_video.main(loader(video_checkpoint, clip_data, *REDUCED, "--batch-size", "4", "--num-workers", "2"))
    assert texts(clip_data / "a.jsonl") == [row["text"] for row in whole[1]]


@pytest.mark.parametrize("start", STARTS)
def test_two_processes_share_the_questions(video_checkpoint, clip_data, whole, start):
    for module, command, file in (
        ("model_vqa_video", loader(video_checkpoint, clip_data, *REDUCED), clip_data / "a.jsonl"),
        ("run_inference_video_qa", published(video_checkpoint, clip_data, *REDUCED), clip_data / "out" / "1_0.json"),
    ):
        done = run_two(start, f"llava.eval.{module}", command)
        assert done.returncode == 0, done.stderr
        assert [row.get("text", row.get("pred")) for row in read(file)] == [row["text"] for row in whole[1]]


def test_chunks_are_cut_as_published_and_keep_their_own_right_answers(video_checkpoint, clip_data, whole):
    found = []
    for number in range(5):  # of ceil(6 / 5) = 2 questions: two are left for the last three
        more = ["--num_chunks", "5", "--chunk_idx", str(number), *REDUCED]
        run_inference_video_qa.main(published(video_checkpoint, clip_data, *more, name=f"5_{number}"))
        found.append(read(clip_data / "out" / f"5_{number}.json"))
    assert [len(rows) for rows in found] == [2, 2, 2, 0, 0]
    expected = [(row["question_id"], row["answer"], row["text"]) for row in whole[1]]
    assert [(row["id"], row["answer"], row["pred"]) for rows in found for row in rows] == expected


@pytest.mark.parametrize("form", ["loader", "published"])
def test_a_run_that_was_cut_goes_on_and_answers_nothing_twice(video_checkpoint, clip_data, whole, form, monkeypatch):
    command, main = loader(video_checkpoint, clip_data, *REDUCED), model_vqa_video.main
    file, key = clip_data / "a.jsonl", "text"
    if form == "published":
        command, main = published(video_checkpoint, clip_data, *REDUCED), run_inference_video_qa.main
        file, key = clip_data / "out" / "1_0.json", "pred"
    main(command)
    before = file.read_bytes()
    lines = before.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    asked, call = [], ClipProcessor.video
    monkeypatch.setattr(ClipProcessor, "video", lambda self, frames: asked.append(1) or call(self, frames))
    main(command)
    assert len(asked) == 3
    assert file.read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert [row[key] for row in read(file)] == [row["text"] for row in whole[1]]
    monkeypatch.setattr("llava.eval.answering.load_checked", None)
    main(command)  # loads nothing
    with pytest.raises(ValueError, match=r"6 rows of another run \(reduction: .*: 24}, now .*: 16}"):
        main([*command, "--visual_token_num", "16"])
    change(clip_data / "test_a.json", lambda right: right[0].update(answer="else"))
    with pytest.raises(ValueError, match=r"6 rows of another run \(truth_sha256: "):
        main(command)


def test_a_run_that_is_killed_goes_on(video_checkpoint, clip_data, whole):
    command = [sys.executable, "-m", "llava.eval.model_vqa_video", *loader(video_checkpoint, clip_data, *REDUCED)]
    command[command.index("--num-workers") + 1] = "1"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    while not (clip_data / "a.jsonl").exists() or not (clip_data / "a.jsonl").read_bytes():
        assert process.poll() is None
        assert time.monotonic() - begun < 120
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = (clip_data / "a.jsonl").read_bytes()
    model_vqa_video.main(loader(video_checkpoint, clip_data, *REDUCED))
    assert (clip_data / "a.jsonl").read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    assert texts(clip_data / "a.jsonl") == [row["text"] for row in whole[1]]


def test_a_missing_clip_stops_the_loader_and_leaves_a_row_out_of_the_published_command(
    video_checkpoint, clip_data, whole, monkeypatch, capsys
):
    (clip_data / "videos" / "clip1.mp4").unlink()
    error = error_of(model_vqa_video.main, loader(video_checkpoint, clip_data, *REDUCED), monkeypatch, capsys)
    expected = "expected the 3 clips that the questions name (.mp4, .avi, .mov, .mkv), 1 are missing: clip1"
    assert error == f"error: video folder {str(clip_data / 'videos')!r}: {expected}"
    assert not (clip_data / "a.jsonl").exists()
    others = [row["text"] for row in whole[1] if row["question_id"] not in ("v_1", "v_4")]
    skipping = loader(video_checkpoint, clip_data, *REDUCED, "--on-error", "skip")
    for main, command, file in (
        (model_vqa_video.main, skipping, clip_data / "a.jsonl"),
        (run_inference_video_qa.main, published(video_checkpoint, clip_data, *REDUCED), clip_data / "out" / "1_0.json"),
    ):
        main(command)
        assert [row.get("text", row.get("pred")) for row in read(file)] == others
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "2 of 6 questions have no row, for 1 of 3 clips are missing: clip1"
        skipped = read(f"{file}.skipped.jsonl")
        place = clip_data / "videos" / "clip1.mp4"
        assert [(row["row"], row["question_id"], row["error"]) for row in skipped] == [
            (number, f"v_{number}", f"expected a video file at {place}, found nothing there") for number in (1, 4)
        ]
    draw_clip(clip_data / "videos" / "clip1.mp4", seed=1)
    run_inference_video_qa.main(published(video_checkpoint, clip_data, *REDUCED))
    assert [row["pred"] for row in read(clip_data / "out" / "1_0.json")] == [row["text"] for row in whole[1]]


def test_the_first_ending_wins_and_activitynet_has_a_prefix(video_checkpoint, clip_data, whole):
    draw_clip(clip_data / "videos" / "clip0.avi", seed=9)  # after .mp4
    draw_clip(clip_data / "videos" / "v_clip0.mp4", seed=9)  # after the name as it is
    for name in ("clip1.mp4", "clip2.avi"):
        (clip_data / "videos" / name).rename(clip_data / "videos" / f"v_{name}")
    model_vqa_video.main(loader(video_checkpoint, clip_data, *REDUCED))
    assert texts(clip_data / "a.jsonl") == [row["text"] for row in whole[1]]
    (clip_data / "videos" / "v_clip0.mp4").unlink()
    (clip_data / "videos" / "clip0.mp4").rename(clip_data / "videos" / "v_clip0.mp4")
    run_inference_video_qa_act.main(published(video_checkpoint, clip_data, *REDUCED))
    assert [row["pred"] for row in read(clip_data / "out" / "1_0.json")] == [row["text"] for row in whole[1]]


def test_a_converted_checkpoint_is_asked_by_the_same_commands_in_its_own_pixels(
    video_checkpoint, clip_data, tmp_path, monkeypatch
):
    folder = tmp_path / "tiny-video-llava-hf"
    convert.main([str(video_checkpoint), str(folder), "--drop-temporal"])
    seen, call = [], ClipProcessor.video
    monkeypatch.setattr(ClipProcessor, "video", lambda self, frames: seen.append(self.stock) or call(self, frames))
    model_vqa_video.main(loader(folder, clip_data, *REDUCED))
    assert all(type(stock).__name__ == "CLIPImageProcessorPil" for stock in seen)
    stats = read(clip_data / "a.jsonl.stats.jsonl")
    assert [row["stages"] for row in stats] == [[[0, 200], [4, 72]]] * 6
    run_inference_video_qa.main(published(folder, clip_data, *REDUCED, "--batch-size", "6"))
    assert [row["pred"] for row in read(clip_data / "out" / "1_0.json")] == texts(clip_data / "a.jsonl")


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
def test_questions_about_one_clip_encode_it_once(video_checkpoint, clip_data, tmp_path, original, reduced):
    folder = video_checkpoint
    if not original:
        folder = tmp_path / "tiny-video-llava-hf"
        convert.main([str(video_checkpoint), str(folder), "--drop-temporal"])
    loaded = load(str(folder), device="cpu")
    reduction = apply(loaded.model, visual_tokens=24, layers={4: 8}) if reduced else None
    prepare = loaded.preparation(ClipFolder(str(clip_data / "videos")), "llava_v1", reduction)
    answering = loaded.answering(reduction, do_sample=False, max_new_tokens=3)
    asked = [("clip0", "what?"), ("clip1", "who is it?"), ("clip0", "where are they all?")]
    prompts = [prepare({"video": name, "text": text}) for name, text in asked]
    alone = [answering([prompt])[0] for prompt in prompts]
    frames, tower = [], loaded.model.base_model.video_tower
    norm = next(module for name, module in tower.named_modules() if name.endswith("layers.0.layer_norm1"))
    hook = norm.register_forward_hook(lambda module, args, output: frames.append(len(output)))
    assert answering(prompts) == alone
    hook.remove()
    assert frames == [16]  # of two clips


def test_other_methods_averages_and_what_becomes_of_cls(video_checkpoint, clip_data):
    cases = {
        "fastervlm": (["--method", "fastervlm", "--visual_token_num", "16", "--frame-cls", "drop"], [[0, 128]]),
        "average": (["--average", "16"], [[0, 200], [4, 72]]),
        "clip": (["--method", "fastervlm", "--visual_token_num", "16", "--group", "image"], [[0, 136]]),
        "fastv": (["--method", "fastv", "--layer_list", "[2]", "--image_token_list", "[16]"], [[0, TOKENS], [2, 128]]),
    }
    change(clip_data / "test_q.json", lambda asked: asked.__delitem__(slice(1, None)))
    change(clip_data / "test_a.json", lambda right: right.__delitem__(slice(None, -1)))
    for name, (more, stages) in cases.items():
        model_vqa_video.main(loader(video_checkpoint, clip_data, *more, answers=f"{name}.jsonl"))
        assert read(clip_data / f"{name}.jsonl.stats.jsonl")[0]["stages"] == stages, name


def test_pictures_are_asked_about_by_the_commands_for_pictures(video_checkpoint, tmp_path):
    draw(tmp_path / "0.png", seed=0)
    rows = [{"question_id": 0, "text": "What?", "image": "0.png"}, {"question_id": 1, "text": "Why?"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"--model-path": video_checkpoint, "--question-file": tmp_path / "q.jsonl", "--image-folder": tmp_path}
    command = words({**given, "--answers-file": tmp_path / "a.jsonl", "--temperature": 0}, REDUCED)
    model_vqa_loader.main(command)
    assert [row["stages"] for row in read(tmp_path / "a.jsonl.stats.jsonl")] == [[[0, 24], [4, 8]], [[0, 0]]]
