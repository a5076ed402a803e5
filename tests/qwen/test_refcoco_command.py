"""RefCOCO end to end on a tiny random model: one process or two, stopped or not, and boxes mapped back by the grid."""

import json
from pathlib import Path

import pytest
from two_processes import STARTS, run_two

from playground.tiny import draw
from qwen.eval.test_refcoco import main, make_parser
from vscan.eval.refcoco import SPLITS

pytestmark = pytest.mark.usefixtures("weights_once")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two splits, of five entries and of two, on three pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    entries = []
    for number in range(7):
        file = folder / "images" / f"{number % 3}.png"
        draw(file, seed=number % 3)
        with Image.open(file) as image:
            width, height = image.size
        entry = {"image": file.name, "normal_caption": f"the {number}. circle", "width": width, "height": height}
        entries.append({**entry, "solution": [10 * number, 20, width - 10, height - 20]})
    (folder / "refcoco_val.json").write_text(json.dumps(entries[:5]))
    (folder / "refcocog_test.json").write_text(json.dumps(entries[5:]))
    return folder


def flags(checkpoint, data, output, *more):
    given = {"--model-path": checkpoint, "--data-root": data, "--image-root": data / "images", "--output-dir": output}
    given |= {"--max_new_tokens": 5, "--num-workers": 0, "--device": "cpu", "--layer-list": "[3]"}
    given = [str(part) for pair in given.items() for part in pair]
    return [*given, "--datasets", "refcoco_val", "refcocog_test", *more]


@pytest.fixture(scope="module")
def one(qwen_checkpoint, data, tmp_path_factory):
    """The folder of one uninterrupted process."""
    output = tmp_path_factory.mktemp("one") / "new" / "folder"
    main(flags(qwen_checkpoint, data, output))
    return output


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


RESULTS = ("refcoco_val.json", "refcocog_test.json", "scores.json")


def test_defaults_are_the_published_ones():
    args = make_parser().parse_args(["--model-path", "m", "--data-root", "d", "--image-root", "i"])
    assert (args.layer_list, args.image_token_ratio_list, args.image_token_ratio) == ("[14]", "[0.67]", 0.6)
    assert (args.max_new_tokens, args.temperature, tuple(args.datasets)) == (512, 0.0, SPLITS)


def test_one_process_writes_answers_results_and_scores(one, capsys):
    scores = json.loads((one / "scores.json").read_text())
    assert list(scores) == ["refcoco_val", "refcocog_test", "all"]
    assert [scores[name]["questions"] for name in scores] == [5, 2, 7]
    for name in ("refcoco_val", "refcocog_test"):
        result = json.loads((one / f"{name}.json").read_text())
        texts = [row["text"] for row in read(one / f"{name}.jsonl")]
        assert [row["model_output"] for row in result["results"]] == texts
        assert result["unparsable"] == sum(row["extracted_answer"] is None for row in result["results"])
    for row in read(one / "refcoco_val.jsonl.stats.jsonl"):
        kept = int(0.6 * row["visual_tokens"])
        assert row["stages"] == [[0, kept], [3, int(0.67 * kept)]]
    record = json.loads((one / "refcoco_val.jsonl.run.json").read_text())
    assert (record["split"], record["max_pixels"]) == ("refcoco_val", 12845056)  # the checkpoint's own


@pytest.mark.parametrize("start", STARTS)
def test_two_gloo_processes_write_the_files_of_one(qwen_checkpoint, data, one, tmp_path, start):
    done = run_two(start, "qwen.eval.test_refcoco", flags(qwen_checkpoint, data, tmp_path))
    assert done.returncode == 0, done.stderr
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (one / name).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in one.iterdir()}
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["refcoco_val", "refcocog_test", "all"]
    assert "of 7 (published counting" in lines[-1]


def test_a_stopped_run_goes_on_and_a_split_more_may_be_asked(qwen_checkpoint, data, one, tmp_path, capsys):
    main([*flags(qwen_checkpoint, data, tmp_path), "--datasets", "refcocog_test"])
    before = (tmp_path / "refcocog_test.jsonl").read_bytes()
    for name in ("jsonl", "jsonl.stats.jsonl", "jsonl.run.json"):
        (tmp_path / f"refcoco_val.{name}").write_bytes((one / f"refcoco_val.{name}").read_bytes())
    whole = (tmp_path / "refcoco_val.jsonl").read_bytes()
    (tmp_path / "refcoco_val.jsonl").write_bytes(whole[: len(whole) // 2])
    main(flags(qwen_checkpoint, data, tmp_path))
    assert (tmp_path / "refcocog_test.jsonl").read_bytes() == before
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (one / name).read_bytes()


def test_answers_are_scored_in_the_pixels_of_the_picture(qwen_checkpoint, data, one, tmp_path, monkeypatch, capsys):
    """Answers are put in the place of the model's; the command finds nothing to answer, and scores them."""
    for file in one.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    entries = json.loads((data / "refcoco_val.json").read_text())
    rows, stats = (read(one / f"refcoco_val.jsonl{end}") for end in ("", ".stats.jsonl"))
    for entry, row, stat in zip(entries, rows, stats, strict=True):
        scales = [stat["resized"][i] / entry[key] for i, key in enumerate(("width", "height"))] * 2
        box = [round(value * scale, 2) for value, scale in zip(entry["solution"], scales, strict=True)]
        row["text"] = f'```json\n[{{"bbox_2d": {box}, "label": "it"}}]\n```'
    rows[4]["text"] = "I see no circle."
    (tmp_path / "refcoco_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("qwen.eval.command.Command.answer", None)
    main(flags(qwen_checkpoint, data, tmp_path))
    result = json.loads((tmp_path / "refcoco_val.json").read_text())
    assert [row["iou"] > 0.99 for row in result["results"]] == [True] * 4 + [False]
    assert (result["accuracy"], result["unparsable"], result["published_accuracy"]) == (80.0, 1, 0.0)
    assert "refcoco_val: Acc@0.5 80.00 % of 5" in capsys.readouterr().out


def test_another_configuration_is_refused_before_anything_is_answered(qwen_checkpoint, data, one, tmp_path):
    for name in ("jsonl", "jsonl.run.json"):
        (tmp_path / f"refcocog_test.{name}").write_bytes((one / f"refcocog_test.{name}").read_bytes())
    with pytest.raises(ValueError, match=r"2 rows of another run \(reduction: "):
        main(flags(qwen_checkpoint, data, tmp_path, "--image-token-ratio", "0.5"))
    assert not (tmp_path / "refcoco_val.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--datasets", "refcoco_testA"], FileNotFoundError, "data root: expected the split refcoco_testA, found none"),
        (["--image-root", "/nowhere"], FileNotFoundError, "image folder: expected a folder, found none"),
        (["--layer-list", "[6]"], ValueError, "layers: expected decoder layers 0 to 5, got 6"),
        (["--model-path", "none"], FileNotFoundError, r"expected a checkpoint folder with config\.json"),
    ],
)
def test_what_is_wrong_is_named(qwen_checkpoint, data, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        main(flags(qwen_checkpoint, data, tmp_path, *more))


def test_a_split_that_is_none_is_a_wrong_flag(qwen_checkpoint, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(flags(qwen_checkpoint, data, tmp_path, "--datasets", "refcoco"))
    assert "invalid choice: 'refcoco'" in capsys.readouterr().err


def test_a_truncated_image_is_skipped_and_counted_as_missing(qwen_checkpoint, data, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for file in (data / "images").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:100])
    command = flags(qwen_checkpoint, data, tmp_path / "out", "--image-root", str(images))
    with pytest.raises(ValueError, match="row 1, question 1: expected a complete image file"):
        main(command)
    main([*command, "--on-error", "skip"])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [scores[name]["missing"] for name in scores] == [2, 0, 2]
    assert "2 missing" in capsys.readouterr().out
