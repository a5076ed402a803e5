"""Running a question file: skipped rows, parts of several processes, and a kill at every single step on the disk."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vscan.eval import records
from vscan.eval.records import AnswersFile, Part
from vscan.eval.runner import Answer, run

CONFIG = {"model_path": "m"}
QUESTIONS = [{"question_id": number // 2, "text": f"{number}?"} for number in range(9)]


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


class Command:
    """One command: started again and again into the same file; `answered` is every row it ever computed."""

    def __init__(self, folder: Path, skip: bool = False, num_ranks: int = 1, batch_size: int = 2):
        self.file, self.skip, self.num_ranks, self.batch_size = folder / "a.jsonl", skip, num_ranks, batch_size
        self.broken: set[str] = set()
        self.answered: list[str] = []

    def prepare(self, question):
        if question["text"] in self.broken:
            raise ValueError("broken picture")
        return question["text"]

    def answer(self, items):
        self.answered += items
        return [Answer(f"to {text}", {"visual_tokens": 576}) for text in items]

    def go(self, questions=QUESTIONS) -> list[int]:
        """Start it; returns the rows that are left."""
        answers = AnswersFile(self.file, CONFIG)
        parts = [answers]
        try:
            todo = answers.todo(questions)
            for rank in range(self.num_ranks):
                shard = todo[len(todo) * rank // self.num_ranks : len(todo) * (rank + 1) // self.num_ranks]
                if not shard:
                    continue
                if self.num_ranks > 1:
                    parts.append(Part.of_rank(self.file, rank, self.num_ranks))
                functions = {"prepare": self.prepare, "answer": self.answer, "show_progress": False}
                run(questions, shard, parts[-1], "m", **functions, batch_size=self.batch_size, skip=self.skip)
                if self.num_ranks > 1:
                    parts[-1].close()
            answers.merge()
            return answers.todo(questions)
        finally:
            for part in parts:
                part.close()

    def rows(self):
        return read(self.file)

    def check(self, missing=()):
        """Every row but those missing once and in order, with its stats, and nothing else on the disk."""
        there = [row for row in range(len(QUESTIONS)) if row not in missing]
        assert [row["text"] for row in self.rows()] == [f"to {row}?" for row in there]
        assert [row["row"] for row in read(f"{self.file}.stats.jsonl")] == there
        names = {"a.jsonl", "a.jsonl.run.json", "a.jsonl.stats.jsonl"} | (
            {"a.jsonl.skipped.jsonl"} if missing else set()
        )
        assert {file.name for file in self.file.parent.iterdir()} == names


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_every_row_is_answered_once_and_in_order(tmp_path, num_ranks, batch_size):
    command = Command(tmp_path, num_ranks=num_ranks, batch_size=batch_size)
    assert command.go() == []
    command.check()
    assert command.go() == []
    assert command.answered == [question["text"] for question in QUESTIONS]


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_skipped_rows_are_noted_tried_again_and_end_in_their_places(tmp_path, num_ranks, batch_size):
    command = Command(tmp_path, True, num_ranks, batch_size)
    command.broken = {"0?", "3?", "4?", "8?"}
    assert command.go() == [0, 3, 4, 8]
    command.check(missing=[0, 3, 4, 8])
    assert read(f"{command.file}.skipped.jsonl") == [
        {"row": row, "question_id": row // 2, "error": "broken picture"} for row in (0, 3, 4, 8)
    ]
    ids = {row["prompt"]: row["answer_id"] for row in command.rows()}
    command.broken = {"3?"}
    assert command.go() == [3]
    command.check(missing=[3])
    assert [row["row"] for row in read(f"{command.file}.skipped.jsonl")] == [3]
    command.broken = set()
    assert command.go() == []
    command.check()
    assert sorted(command.answered) == [question["text"] for question in QUESTIONS]  # none twice
    assert {row["prompt"]: row["answer_id"] for row in command.rows()}.items() >= ids.items()
    assert [list(row) for row in command.rows()] == [
        ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    ] * 9


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_broken_row_stops_the_run_after_the_rows_before_it(tmp_path, batch_size):
    command = Command(tmp_path, batch_size=batch_size)
    command.broken = {"5?"}
    with pytest.raises(ValueError, match="row 5, question 2: broken picture"):
        command.go()
    assert [row["prompt"] for row in command.rows()] == ["0?", "1?", "2?", "3?", "4?"]
    command.broken = set()
    assert command.go() == []
    command.check()
    assert command.answered == [question["text"] for question in QUESTIONS]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_run_may_be_continued_with_another_number_of_processes(tmp_path, num_ranks):
    command = Command(tmp_path, num_ranks=2)
    command.broken = {"2?", "7?"}
    with pytest.raises(ValueError, match="row 2"):
        command.go()
    part = Part.of_rank(command.file, 1, 2)
    run(QUESTIONS, [4, 5], part, "m", command.prepare, command.answer, show_progress=False)
    part.close()
    command.broken, command.num_ranks = set(), num_ranks
    assert command.go() == []
    command.check()
    assert sorted(command.answered) == [question["text"] for question in QUESTIONS]


@pytest.fixture
def mortal(monkeypatch):
    """A function that runs another one and dies before its n-th change to the disk, or halfway through that write."""
    left = [None]

    def counted(function, is_write):
        def call(*args, **kwargs):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    if is_write:
                        function(args[0], args[1][: len(args[1]) // 2])
                    raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in [(os, "write"), (os, "replace"), (os, "truncate"), (Path, "unlink"), (Path, "write_bytes")]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name), name.startswith("write")))

    def start(function, step: int) -> bool:
        left[0] = step
        try:
            function()
            return False
        except Killed:
            return True
        finally:
            left[0] = None

    return start


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_kill_at_any_step_on_the_disk_loses_doubles_and_recomputes_nothing(tmp_path, mortal, num_ranks):
    def ids(command):
        files = [file for file in command.file.parent.iterdir() if re.fullmatch(r"a\.jsonl(\.rank.of.)?", file.name)]
        rows = [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]
        return {row["prompt"]: row["answer_id"] for row in rows}

    def kill(command, step):
        """Start and kill; then no answer that was whole is lost, and none was computed that is not there."""
        before = ids(command)
        num_answered = len(command.answered)
        killed = mortal(command.go, step)
        computed = command.answered[num_answered:]
        assert ids(command).items() >= before.items()
        assert not before.keys() & set(computed)
        return killed

    step, alive = 0, True
    while alive:
        for again in range(step % 12, 24, 12):  # all of them, of one step or another
            folder = tmp_path / f"{step}-{again}"
            folder.mkdir()
            command = Command(folder, True, num_ranks)
            # The second start has everything to do: rows to append, rows that were skipped and parts to merge.
            command.broken = {"1?", "4?", "7?", "8?"}
            command.go()
            command.broken = set()
            alive = kill(command, step)
            kill(command, again)
            before = ids(command)
            assert command.go() == []
            command.check()
            assert ids(command).items() >= before.items()
            # A batch whose answers were not on the disk yet is computed again, and nothing else.
            assert len(command.answered) <= 9 + 2 * command.batch_size
        step += 1
    assert step > 15


def test_a_full_disk_leaves_whole_rows_and_says_so(tmp_path, monkeypatch):
    command = Command(tmp_path)
    room, write = [900], os.write

    def write_what_fits(stream, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(stream, content[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    with pytest.raises(OSError, match=r"expected to write another row, got 'No space left on device'; the \d rows"):
        command.go()
    whole = command.file.read_text()
    assert whole.endswith("\n")
    assert 0 < len(whole.splitlines()) < 9
    room[0] = 10**6
    assert command.go() == []
    command.check()
    assert command.file.read_text().startswith(whole)


def test_two_runs_at_once_are_refused(tmp_path, monkeypatch):
    """A run that outlived its terminal, or whose torchrun was killed, goes on writing."""
    command = Command(tmp_path)
    command.broken = {"5?"}
    with pytest.raises(ValueError, match="row 5"):
        command.go()
    hold = "import sys; from vscan.eval.records import Part; part = Part(sys.argv[1]); print(flush=True); input()"
    for file in (command.file, f"{command.file}.rank1of2"):
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        holder.stdout.readline()
        monkeypatch.setattr(records, "PATIENCE", 0.3)
        before = command.file.read_bytes()
        with pytest.raises(ValueError, match="expected one that no other process writes to"):
            command.go()
        assert command.file.read_bytes() == before
        # One that has been killed but is not gone yet is waited for.
        monkeypatch.setattr(records, "PATIENCE", 10)
        threading.Timer(0.3, holder.kill).start()
        with pytest.raises(ValueError, match="row 5"):
            command.go()
        holder.wait()
    command.broken = set()
    assert command.go() == []
    command.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda questions: questions[1:],
            r"line 2: expected the answer to row 1 .*\(question 1\), got .* question 0",
        ),
        (
            lambda questions: questions[:4],
            r"line 5: expected the answer to row 4 .*\(no question\), got .* question 2",
        ),
    ],
)
def test_a_question_file_that_was_changed_is_noticed(tmp_path, change, message):
    command = Command(tmp_path)
    command.go()
    before = command.file.read_bytes()
    with pytest.raises(ValueError, match=message):
        command.go(change(QUESTIONS))
    assert command.file.read_bytes() == before


def test_parts_of_another_configuration_are_not_taken(tmp_path):
    command = Command(tmp_path, num_ranks=2)
    command.broken = {"3?"}
    with pytest.raises(ValueError, match="row 3"):
        command.go()
    with pytest.raises(ValueError, match=r"got 3 rows of another run \(model_path: 'm', now 'n'\)"):
        AnswersFile(command.file, {"model_path": "n"})
    command.broken = set()
    assert command.go() == []
    command.check()


@pytest.mark.parametrize("name", ["folder", "device"])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/full")  # without an end, when it is read
    with pytest.raises(ValueError, match="expected a file, got a folder or a device"):
        AnswersFile(tmp_path / name, CONFIG)
