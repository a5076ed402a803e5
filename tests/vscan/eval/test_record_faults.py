"""What can be wrong with answers and the records beside them: one line names it, and no row is lost."""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import QUESTIONS, go, prepare, read, reply

from vscan.eval import run_record
from vscan.eval.benchmark import read_rows
from vscan.eval.cells import Cell, evaluate
from vscan.eval.questions import check_images, read_questions
from vscan.eval.records import AnswersFile, Part
from vscan.eval.runner import run


@pytest.fixture
def begun(tmp_path):
    """An answers file of three rows, whole."""
    go(tmp_path / "a.jsonl", questions=QUESTIONS[:3])
    return tmp_path / "a.jsonl"


def refused(file, config=None) -> str:
    """What a start says that changes no answer."""
    before = file.read_bytes()
    with pytest.raises(ValueError, match="expected ") as caught:
        go(file, config)
    assert file.read_bytes() == before
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- lines on the disk


@pytest.mark.parametrize("content", ["[1]", "", "{", "\ufffe", '"text"', '{"reduction": [1]}', '{"model_path": 7}'])
def test_a_record_that_is_none_is_named(begun, content):
    record = Path(f"{begun}.run.json")
    record.write_text(content)
    assert refused(begun).startswith(f"{record}: expected ")


@pytest.mark.parametrize("line", ["", "  ", "{", "[1]", "7", '{"text": "no id"}', '{"question_id": 1}', '"\ud800"'])
def test_a_line_of_answers_that_is_none_is_named(begun, line):
    lines = begun.read_bytes().splitlines(keepends=True)
    begun.write_bytes(lines[0] + line.encode(errors="surrogatepass") + b"\n" + lines[2])
    expected = f"{begun}, line 2: expected an answer, a JSON object with question_id and text, got "
    assert refused(begun).startswith(expected)


@pytest.mark.parametrize(
    "line",
    ["", "{", "[1]", '{"row": "1"}', '{"row": -1}', '{"row": 1.5}', '{"row": true}', '{"row": 1, "stages": [1]}'],
)
def test_a_line_of_stats_that_is_none_is_named(begun, line):
    stats = Path(f"{begun}.stats.jsonl")
    lines = stats.read_text().splitlines(keepends=True)
    stats.write_text(lines[0] + line + "\n" + lines[2])
    assert refused(begun).startswith(f"{stats}, line 2: expected an answer's stats, ")


def test_a_part_of_another_process_is_read_as_strictly(begun):
    Path(f"{begun}.rank1of2").write_text('{"text": "?"}\n')
    Path(f"{begun}.rank1of2.stats.jsonl").write_text('{"row": 5}\n')
    assert refused(begun).startswith(f"{begun}.rank1of2, line 1: expected an answer")


@pytest.mark.parametrize("content", [b"junk", b"", b"junk\n", b'{"question_id": 0, "text": "x"}\n'])
def test_a_stray_file_takes_the_place_of_no_rows(begun, content):
    stray = Path(f"{begun}.new")
    stray.write_bytes(content)
    assert refused(begun).startswith(str(stray))
    assert stray.read_bytes() == content
    stray.unlink()
    go(begun)
    assert len(read(begun)) == 6


def test_a_merge_that_a_kill_cut_short_is_finished(begun):
    """Both were written; the stats, or nothing yet, have taken their place."""
    rows, stats = begun.read_bytes(), Path(f"{begun}.stats.jsonl").read_bytes()
    for file, content in ((begun, rows), (Path(f"{begun}.stats.jsonl"), stats)):
        file.write_bytes(b"".join(content.splitlines(keepends=True)[::2]))
    Path(f"{begun}.new").write_bytes(rows)
    Path(f"{begun}.stats.jsonl.new").write_bytes(stats)
    go(begun)
    assert begun.read_bytes().startswith(rows)
    assert not Path(f"{begun}.new").exists()


# ---------------------------------------------------------------------------------------------- where answers cannot go


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/a.jsonl", "file/folder/a.jsonl"):
        with pytest.raises(ValueError, match="expected a folder") as caught:
            go(tmp_path / name)
        got = f"answers file {str(tmp_path / name)!r}: expected a folder at {str(tmp_path / 'file')!r}, got a file"
        assert str(caught.value) == got


@pytest.mark.parametrize("length", [250, 5000])  # the first is too long for what lies beside it
def test_a_name_that_is_too_long_is_cut(tmp_path, length):
    with pytest.raises(ValueError, match="File name too long") as caught:
        go(tmp_path / ("a" * length))
    assert str(caught.value).startswith(f"answers file '{str(tmp_path)[:40]}")
    assert "expected one that can be written" in str(caught.value)
    assert len(str(caught.value)) < 900
    if length == 5000:
        with pytest.raises(ValueError, match="expected one that can be written, got 'File name too long'"):
            AnswersFile.check(tmp_path / ("a" * length), {})


@pytest.mark.parametrize("function", [read_questions, read_rows, lambda name: check_images([{"image": name}], ".")])
def test_other_names_that_are_too_long_are_of_files_that_are_missing(function):
    with pytest.raises(FileNotFoundError, match=r"expected .*(found none|are missing)"):
        function("a" * 5000)


# ----------------------------------------------------------------------------------------------------------- one record


def test_flags_are_compared_under_the_lock_too(tmp_path, monkeypatch):
    """Another command begins the file between this one's look at it and its lock."""
    file, lock = tmp_path / "a.jsonl", Part._lock

    def late(part):
        monkeypatch.setattr(Part, "_lock", lock)
        go(file, {"flag": 1}, QUESTIONS[:3])
        lock(part)

    monkeypatch.setattr(Part, "_lock", late)
    with pytest.raises(ValueError, match=r"got 3 rows of another run \(flag: 1, now 2\)"):
        go(file, {"flag": 2})
    assert len(read(file)) == 3
    assert json.loads(Path(f"{file}.run.json").read_text()) == {"flag": 1}


def test_rows_that_were_merged_while_the_lock_was_waited_for_are_seen(tmp_path, monkeypatch):
    """A merge puts another file in the place of the one that a second command has opened."""
    file, lock = tmp_path / "a.jsonl", fcntl.lockf
    go(tmp_path / "merged.jsonl", questions=QUESTIONS[:3])

    def late(*args):
        monkeypatch.setattr(fcntl, "lockf", lock)
        for end in ("", ".stats.jsonl", ".run.json"):
            os.replace(tmp_path / f"merged.jsonl{end}", f"{file}{end}")
        return lock(*args)

    monkeypatch.setattr(fcntl, "lockf", late)
    with pytest.raises(ValueError, match=r"got 3 rows of another run \(flag: 1, now 2\)"):
        go(file, {"flag": 2})
    go(file)
    assert len(read(file)) == 6


def test_a_second_command_waits_for_no_rows_of_other_flags(tmp_path):
    """The same with two processes: the second comes while the first writes."""
    file = tmp_path / "a.jsonl"
    code = f"""if True:
        from vscan.eval.records import AnswersFile
        file = AnswersFile({str(file)!r}, {{"flag": 1}})
        print(flush=True)
        input()
        file.append([{{"question_id": 0, "text": "x"}}], [{{"row": 0}}])
    """
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    first.stdout.readline()
    first.stdin.write("\n")
    with pytest.raises(ValueError, match=r"rows of another run \(flag: 1, now 2\)"):
        go(file, {"flag": 2})
    first.wait()
    assert [row["text"] for row in read(file)] == ["x"]


@pytest.fixture
def checkpoint(tmp_path):
    """Files with the names of a checkpoint's, and a question file."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model-1.safetensors", "tokenizer.model", "answers.jsonl.run.json", "notes.txt"):
        (folder / name).write_text(name)
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "text": "?"}\n')
    return tmp_path


def record_of(folder, **flags):
    args = {"model_path": folder / "model", "question_file": folder / "q.jsonl", "image_folder": folder}
    args |= {"answers_file": "a", "num_workers": 2, "on_error": "stop", "method": "vscan", "visual_token_num": 9}
    args |= {"temperature": 0.0, "device": "cpu", **flags}
    args = argparse.Namespace(**{key: str(value) if isinstance(value, Path) else value for key, value in args.items()})
    return run_record.run_record(args, args.question_file, [args.model_path])


def test_a_record_holds_flags_versions_and_what_lies_in_the_files(checkpoint):
    record = record_of(checkpoint)
    assert record["temperature"] == 0.0
    assert set(record["versions"]) == {"vscan", "torch", "transformers"}
    assert record["versions"]["torch"].split(".")[0].isdecimal()
    assert re.fullmatch("[0-9a-f]{64}", record["questions_sha256"])
    names = ["config.json", "model-1.safetensors", "tokenizer.model"]
    assert list(record["checkpoint"]) == [f"model/{name}" for name in names]
    size, time = record["checkpoint"]["model/config.json"]
    assert (size, time) == (len("config.json"), (checkpoint / "model" / "config.json").stat().st_mtime_ns)
    assert not {"answers_file", "num_workers", "on_error", "method", "visual_token_num"} & set(record)


def test_however_it_is_spelled_it_is_the_same_run(checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(checkpoint)
    record = record_of(checkpoint)
    spelled = {"model_path": "model/../model/", "question_file": "./q.jsonl", "image_folder": ".", "device": None}
    assert record_of(checkpoint, **spelled) == record
    assert record_of(checkpoint, num_workers=0, answers_file="b", window=6) == record  # a hyper-parameter has its place
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert record_of(checkpoint, device=None) == record_of(checkpoint, device="cuda:1") != record


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (
            lambda f: (f / "q.jsonl").write_text('{"question_id": 0, "text": "!"}\n'),
            r"questions_sha256: '\w+', now '\w+'",
        ),
        (
            lambda f: (f / "model" / "model-1.safetensors").write_text("longer than before"),
            r"checkpoint: {'model/model-1.safetensors': \[19, \d+\]}, now {'model/model-1.safetensors': \[18, \d+\]}",
        ),
        (lambda f: os.utime(f / "model" / "tokenizer.model", ns=(1, 1)), r"checkpoint: .*15, \d+\]}, now .*15, 1\]}"),
        (lambda f: (f / "model" / "generation_config.json").write_text("{}"), r"checkpoint: {}, now {'model/gen.*}"),
    ],
)
def test_a_change_of_files_between_two_starts_is_named(checkpoint, change, differs):
    file = checkpoint / "a.jsonl"
    go(file, record_of(checkpoint), QUESTIONS[:3])
    change(checkpoint)
    assert re.search(rf"got 3 rows of another run \({differs}\); give another", refused(file, record_of(checkpoint)))


@pytest.mark.parametrize("library", ["vscan", "torch", "transformers"])
def test_a_change_of_versions_is_named(checkpoint, monkeypatch, library):
    file = checkpoint / "a.jsonl"
    go(file, record_of(checkpoint), QUESTIONS[:3])
    version = run_record.metadata.version
    monkeypatch.setattr(run_record.metadata, "version", lambda name: "9.9" if name == library else version(name))
    message = refused(file, record_of(checkpoint))
    assert f"(versions: {{{library!r}: " in message
    assert f", now {{{library!r}: '9.9'}})" in message


def test_rows_from_before_there_were_hashes_are_continued_if_the_flags_are_the_same(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    file, now = checkpoint / "a.jsonl", record_of(checkpoint)
    older = {key: value for key, value in now.items() if key not in run_record.LATER}
    older |= {"question_file": "q.jsonl", "image_folder": ".", "device": "cpu"}
    go(file, older, QUESTIONS[:3])
    assert "(temperature: 0.0, now 0.5)" in refused(file, {**now, "temperature": 0.5})
    go(file, now)
    assert len(read(file)) == 6
    assert json.loads(Path(f"{file}.run.json").read_text()) == now
    assert "versions" in refused(file, {**now, "versions": {}})


def test_a_hyper_parameter_that_spells_out_its_default_is_the_same_reduction():
    from vscan.config import ReductionConfig

    plain = ReductionConfig("vscan", 96, {4: 32})
    spelled = ReductionConfig("vscan", 96, {4: 32}, fields={"window": 6, "local_layer": 1})
    assert run_record.reduction_record(spelled, {"local_layer": 1}) == plain.to_dict()
    assert run_record.reduction_record(spelled, {}) == {**plain.to_dict(), "local_layer": 1}
    assert run_record.reduction_record(None, {}) is None


def test_cells_are_not_continued_by_other_versions(tmp_path, monkeypatch):
    def answer(cell, todo, answers):
        run(questions, todo, answers, "m", prepare, reply, show_progress=False)

    questions = [{**question, "answer": "yes"} for question in QUESTIONS]
    evaluate([Cell("dense")], questions, tmp_path, {}, answer)
    monkeypatch.setattr(run_record.metadata, "version", lambda name: "9.9")
    with pytest.raises(ValueError, match=r"6 rows of another run \(versions: "):
        evaluate([Cell("dense")], questions, tmp_path, {}, answer)
