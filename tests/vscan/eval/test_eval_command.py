"""`python -m vscan.eval`: scores are printed and written with their counts, errors are one line, data is checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import eval_folders
import pytest

from vscan.eval.__main__ import main
from vscan.eval.benchmarks import BENCHMARKS, SUBMISSIONS

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ROOT.parent / "shared" / "llava_eval"
NAMES = (
    "gqa vqav2 science_qa vizwiz textvqa pope mme mmbench mmbench_cn mm_vet seed_bench refcoco "
    "tgif msvd msrvtt activitynet docvqa infovqa"
)
SUFFIX = "\nAnswer the question using a single word or phrase."


def jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def pope(folder, texts=("Yes", "No")):
    """A folder of two questions a split."""
    questions = []
    for split in ("adversarial", "random", "popular"):
        labels = [
            {"question_id": row, "image": "1.jpg", "text": f"Is there a {row}?", "label": label}
            for row, label in enumerate(("yes", "no"))
        ]
        jsonl(folder / "coco" / f"coco_pope_{split}.json", labels)
        for label in labels:
            number = len(questions)
            questions.append({**label, "question_id": number, "text": label["text"] + SUFFIX, "category": split})
    jsonl(folder / "llava_pope_test.jsonl", questions)
    (folder / "val2014").mkdir()
    (folder / "val2014" / "1.jpg").touch()
    return [
        {"question_id": row, "prompt": question["text"], "text": texts[row % 2]}
        for row, question in enumerate(questions)
    ]


def vizwiz(folder):
    questions = [{"question_id": row, "image": f"{row}.jpg", "text": f"What?{SUFFIX}"} for row in range(2)]
    jsonl(folder / "llava_test.jsonl", questions)
    return [{"question_id": row, "prompt": question["text"], "text": "Red."} for row, question in enumerate(questions)]


def run(*arguments):
    command = [sys.executable, "-m", "vscan.eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_the_benchmarks_are_those_of_both_papers():
    assert list(BENCHMARKS) == NAMES.split()
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())
    assert SUBMISSIONS.keys() <= BENCHMARKS.keys()


def test_no_torch_is_imported():
    code = (
        "import sys, vscan.eval.__main__; print({'torch', 'transformers', 'matplotlib', 'openpyxl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


def test_scores_are_printed_and_written_beside_the_answers(tmp_path, capsys):
    file = jsonl(tmp_path / "run" / "answers.jsonl", pope(tmp_path / "pope")[:-1])
    main(["pope", "--answers", str(file), "--data", str(tmp_path / "pope")])
    out = capsys.readouterr().out
    assert out.startswith("pope: 88.89 (mean F1 over the splits, in percent)\n  rows 6, missing 1, unparsed 0\n")
    assert "  note: 1 rows have no answer and count as wrong\n" in out
    content = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (content["benchmark"], content["answers"]) == ("pope", "answers.jsonl")
    assert content["value"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert (content["num_questions"], content["num_missing"], content["num_unparsed"]) == (6, 1, 0)
    assert content["parts"]["popular"]["F1"] == pytest.approx(200 / 3)


def test_answers_of_several_models_in_one_folder_have_scores_each(tmp_path, capsys):
    rows = pope(tmp_path / "pope")
    for name in ("llava-v1.5-13b", "llava-v1.5-7b", "llava-v1.5-13b"):
        file = jsonl(tmp_path / "answers" / f"{name}.jsonl", rows)
        main(["pope", "--answers", str(file), "--data", str(tmp_path / "pope")])
        scores = tmp_path / "answers" / f"{name}.scores.json"
        assert json.loads(scores.read_text())["answers"] == f"{name}.jsonl"
        assert f"  written: {scores}\n" in capsys.readouterr().out
    output = tmp_path / "new" / "7b.json"
    main(["pope", "--answers", str(file), "--data", str(tmp_path / "pope"), "--output", str(output)])
    assert json.loads(output.read_text())["value"] == 100


def test_a_closed_pipe_loses_no_scores(tmp_path):
    out, data = tmp_path / "out", tmp_path / "eval"
    rows = pope(data / "pope")
    for number in range(3):
        jsonl(out / "pope" / f"run-{number}" / "answers.jsonl", rows)
    command = f"{sys.executable} -u -m vscan.eval all --answers {out} --data {data} | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(out.rglob("scores.json"))) == 3


def test_what_a_judge_needs_is_written_where_the_right_answers_are(tmp_path, capsys):
    eval_folders.mm_vet(tmp_path / "mm-vet", ["red", "blue"])
    rows = [{"question_id": 0, "prompt": "What is x in equation 0?", "text": "red"}]
    file = jsonl(tmp_path / "answers.jsonl", rows)
    main(["mm_vet", "--answers", str(file), "--data", str(tmp_path / "mm-vet")])
    assert json.loads((tmp_path / "answers.json").read_text()) == {"v1_0": "red"}
    assert json.loads((tmp_path / "answers.judge.jsonl").read_text())["answer"] == "red"
    assert capsys.readouterr().out.count("for a server or a judge") == 2


def test_what_a_server_needs_is_written_beside_the_scores(tmp_path, capsys):
    rows = vizwiz(tmp_path / "vizwiz")
    file = jsonl(tmp_path / "answers.jsonl", rows)
    main(["vizwiz", "--answers", str(file), "--data", str(tmp_path / "vizwiz")])
    assert "vizwiz: not to be had here (" in capsys.readouterr().out
    assert json.loads((tmp_path / "answers.upload.json").read_text())[1] == {"image": "1.jpg", "answer": "red"}
    file = jsonl(tmp_path / "half" / "answers.jsonl", rows[:1])
    main(["vizwiz", "--answers", str(file), "--data", str(tmp_path / "vizwiz")])
    assert "  not written: answers.upload.json, for a server or a judge: " in capsys.readouterr().out
    assert not (tmp_path / "half" / "answers.upload.json").exists()


def test_scores_that_cannot_be_written_beside_the_answers_are_still_printed(tmp_path, capsys):
    file = jsonl(tmp_path / "run" / "answers.jsonl", pope(tmp_path / "pope"))
    (tmp_path / "run" / "scores.json.tmp").mkdir()  # as good as a folder that may not be written to, for root too
    main(["pope", "--answers", str(file), "--data", str(tmp_path / "pope")])
    out, err = capsys.readouterr()
    assert out.startswith("pope: 100.00")
    assert err.startswith("not written: ")
    with pytest.raises(OSError, match="directory"):
        main(
            ["pope", "--answers", str(file), "--data", str(tmp_path / "pope"), "--output", f"{file.parent}/scores.json"]
        )


def test_all_scores_every_run_and_goes_on_after_an_error(tmp_path, capsys):
    out, data = tmp_path / "out" / "llava1_5", tmp_path / "eval"
    rows = pope(data / "pope")
    for run_name in ("dense", "vscan-11.1"):
        jsonl(out / "pope" / run_name / "answers.jsonl", rows)
    jsonl(out / "vizwiz" / "dense" / "answers.jsonl", vizwiz(data / "vizwiz")[:1] * 2)
    first = out / "pope" / "dense-first3"  # of its first rows, with data of its own
    jsonl(first / "answers.jsonl", pope(first / "data"))
    with pytest.raises(SystemExit) as stop:
        main(["all", "--answers", str(tmp_path / "out"), "--data", str(data)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.count("error: vizwiz: ") == 1
    assert "expected one answer a question" in printed.err
    found = sorted(file.parent.name for file in out.rglob("scores.json"))
    assert found == ["dense", "dense-first3", "vscan-11.1"]
    (out / "vizwiz" / "dense" / "answers.jsonl").unlink()
    (data / "pope" / "llava_pope_test.jsonl").unlink()
    main(["all", "--answers", str(first), "--data", str(data)])


def test_all_says_what_it_looks_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected answers in .* as <benchmark>/<method-budget>/answers.jsonl"):
        main(["all", "--answers", str(tmp_path), "--data", str(tmp_path)])


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    done = run("pope", "--answers", tmp_path / "none.jsonl", "--data", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: expected llava_pope_test.jsonl in ")
    assert done.stderr.count("\n") == 1
    done = run("popes", "--answers", "x", "--data", "y")
    assert done.returncode == 2
    assert "invalid choice: 'popes'" in done.stderr


def test_check_says_what_is_right_half_there_and_wrong(tmp_path, capsys, monkeypatch):
    pope(tmp_path / "pope")
    with pytest.raises(SystemExit) as stop:
        main(["check", str(tmp_path)])
    assert stop.value.code == 1  # six questions are not the published ones
    out = capsys.readouterr().out
    assert "gqa          absent  nothing in gqa/\n" in out
    assert "- llava_pope_test.jsonl: expected 8910 rows as published, got 6\n" in out
    assert "- coco_pope_random.json: expected 2910 rows as published, got 2\n" in out

    counts = {"llava_pope_test.jsonl": 6, **{f"coco/coco_pope_{split}.json": 2 for split in ("random", "popular")}}
    files = BENCHMARKS["pope"].files
    for file in files:
        if file.num_rows is not None:
            monkeypatch.setitem(file.__dict__, "num_rows", counts.get(file.paths[0], 2))
    main(["check", str(tmp_path)])
    out = capsys.readouterr().out
    assert "pope         right   llava_pope_test.jsonl 6; coco_pope_random.json 2; " in out
    assert "1 images" in out

    (tmp_path / "pope" / "val2014" / "1.jpg").unlink()
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path)])
    out = capsys.readouterr().out
    assert "pope         half " in out
    assert "- missing: 1 of 1 images: 1.jpg\n" in out

    labels = tmp_path / "pope" / "coco" / "coco_pope_random.json"
    labels.write_text(labels.read_text().replace("Is there", "Was there"))
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path)])
    out = capsys.readouterr().out
    assert "pope         wrong " in out
    assert "coco_pope_random.json, row 1: expected the label of " in out


def test_check_says_where_no_count_is_known(tmp_path, capsys):
    eval_folders.docvqa(tmp_path / "docvqa", [["1"], ["2"]])
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path)])
    assert "val_v1.0_withQT.json 2 (count not known)" in capsys.readouterr().out


def test_check_needs_a_folder_with_a_benchmark(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected benchmarks in .*, as gqa, vqav2, scienceqa"):
        main(["check", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="expected a folder at "):
        main(["check", str(tmp_path / "none")])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_published_question_files_have_the_published_counts(capsys):
    with pytest.raises(SystemExit):
        main(["check", str(PUBLISHED)])
    out = capsys.readouterr().out
    assert "expected" not in out  # nothing is wrong, much is missing
    assert "pope         half    llava_pope_test.jsonl 8910; coco_pope_random.json 2910; " in out


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
@pytest.mark.parametrize(
    ("name", "folder", "shown"),
    [
        ("pope", "pope", "pope: 85.95 ("),
        ("science_qa", "scienceqa", "science_qa: 71.64 ("),
        ("vizwiz", "vizwiz", "identical rows of the upload file: 8000\n"),
    ],
)
def test_published_answers_are_scored_by_the_command(tmp_path, name, folder, shown):
    answers = PUBLISHED / folder / "answers" / "llava-v1.5-13b.jsonl"
    done = run(name, "--answers", answers, "--data", PUBLISHED / folder, "--output", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["num_missing"] == 0
