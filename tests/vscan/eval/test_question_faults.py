"""What can go wrong with a question while a run goes on, and how runs end."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest
from run_helpers import go, read, reply

from vscan.eval.runner import Stopped
from vscan.io.ranks import Ranks

# ------------------------------------------------------------------------------------------ an error is of its question

ERRORS = [
    (ValueError("no picture"), "no picture"),
    (RuntimeError("shapes"), "RuntimeError: shapes"),
    (TypeError("none"), "TypeError: none"),
    (PermissionError(13, "Permission denied", "f"), "PermissionError: [Errno 13] Permission denied: 'f'"),
    (MemoryError(), "MemoryError"),
    (RecursionError("too deep"), "RecursionError: too deep"),
    (KeyError("image"), "KeyError: 'image'"),
    (
        UnicodeEncodeError("utf-8", "ab\ud800", 2, 3, "surrogates not allowed"),
        r"expected a text that UTF-8 can hold, got '\ud800' at character 2: half of a surrogate pair",
    ),
]


class Unsendable(Exception):
    """Cannot be made again from what it gives to pickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def failing(error, texts=("3?",)):
    """Functions that prepare, and that answer, all but some questions."""

    def prepare_or_fail(question):
        if question["text"] in texts:
            raise error
        return question["text"]

    def answer_or_fail(items):
        if set(texts) & set(items):
            raise error
        return reply(items)

    return {"prepare": {"prepare": prepare_or_fail}, "answer": {"answer": answer_or_fail}}


@pytest.mark.parametrize(("error", "message"), [*ERRORS, (Unsendable("a", "b"), "Unsendable: a b")])
@pytest.mark.parametrize("where", ["prepare", "answer"])
def test_an_error_of_any_kind_is_of_its_question(tmp_path, error, message, where):
    options = failing(error)[where]
    with pytest.raises(ValueError, match="row") as caught:
        go(tmp_path / "a.jsonl", **options)
    assert str(caught.value) == f"row 3, question 1: {message}"
    assert len(read(tmp_path / "a.jsonl")) == 3
    go(tmp_path / "a.jsonl", skip=True, **options)
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == [f"to {row}?" for row in (0, 1, 2, 4, 5)]
    assert read(tmp_path / "a.jsonl.skipped.jsonl") == [{"row": 3, "question_id": 1, "error": message}]
    go(tmp_path / "a.jsonl")
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == [f"to {row}?" for row in range(6)]


def test_an_error_that_cannot_leave_its_worker_is_named_all_the_same(tmp_path):
    options = failing(Unsendable("a", "b"))["prepare"]
    go(tmp_path / "a.jsonl", skip=True, num_workers=1, **options)
    assert [row["error"] for row in read(tmp_path / "a.jsonl.skipped.jsonl")] == ["Unsendable: a b"]


def test_a_batch_that_fails_names_the_question_and_who_was_with_it(tmp_path):
    options = {"batch_size": 3, **failing(RuntimeError("shapes"), ["4?"])["answer"]}
    with pytest.raises(ValueError, match="shapes") as caught:
        go(tmp_path / "a.jsonl", **options)
    expected = "row 4, question 2: RuntimeError: shapes (alone, and before in a batch of rows 3, 4, 5)"
    assert str(caught.value) == expected
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == [f"to {row}?" for row in range(4)]
    go(tmp_path / "a.jsonl", skip=True, **options)
    assert [row["row"] for row in read(tmp_path / "a.jsonl.skipped.jsonl")] == [4]
    assert len(read(tmp_path / "a.jsonl")) == 5


def test_a_full_gpu_or_a_changed_library_is_no_question_s_fault(tmp_path):
    import torch

    from vscan.compat import LibraryChanged

    for error in (torch.OutOfMemoryError("CUDA out of memory"), LibraryChanged("a", "b")):
        with pytest.raises(type(error)):
            go(tmp_path / "a.jsonl", skip=True, **failing(error)["answer"])


@pytest.mark.parametrize("skip", [True, False])
def test_a_question_that_the_model_cannot_take_is_not_answered(tmp_path, skip):
    asked = []

    def check(item):
        if item == "1?":
            raise ValueError("expected a prompt of at most 2 tokens")

    def answer(items):
        asked.extend(items)
        return reply(items)

    options = {"answer": answer, "check": check, "skip": skip, "batch_size": 3}
    if skip:
        go(tmp_path / "a.jsonl", **options)
        assert asked == ["0?", "2?", "3?", "4?", "5?"]
    else:
        with pytest.raises(ValueError, match="row 1, question 0: expected a prompt of at most 2 tokens"):
            go(tmp_path / "a.jsonl", **options)
        assert asked == ["0?"]


# --------------------------------------------------------------------------------------------------------- how runs end


def test_ctrl_c_says_how_far_the_run_is(tmp_path):
    with pytest.raises(Stopped) as caught:
        go(tmp_path / "a.jsonl", batch_size=2, **failing(KeyboardInterrupt())["answer"])
    assert str(caught.value) == "stopped after 2 rows; the same command goes on"
    with pytest.raises(KeyboardInterrupt, match="stopped after 3 rows"):
        go(tmp_path / "a.jsonl", **failing(KeyboardInterrupt())["answer"])
    go(tmp_path / "a.jsonl")
    assert len(read(tmp_path / "a.jsonl")) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_dies_with_its_parent_and_leaves_ctrl_c_to_it(tmp_path):
    def ask(question):
        number = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
        return f"{number.value} {signal.getsignal(signal.SIGINT) == signal.SIG_IGN}"

    go(tmp_path / "a.jsonl", prepare=ask, num_workers=1)
    assert {row["text"] for row in read(tmp_path / "a.jsonl")} == {f"to {signal.SIGKILL.value} True"}


def test_a_worker_whose_parent_is_gone_already_ends():
    code = "from vscan.io.ranks import die_with_parent; die_with_parent(1234567); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_worker_that_is_killed_is_named(tmp_path):
    def die(question):
        if question["text"] == "3?":
            os.kill(os.getpid(), signal.SIGKILL)
        return question["text"]

    with pytest.raises(OSError, match=r"row \d or one after it: expected 1 processes .* got one that ended"):
        go(tmp_path / "a.jsonl", prepare=die, num_workers=1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "environment variable RANK: expected a number of 0 or more, got 'abc'"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "environment variable WORLD_SIZE: expected a number of 0 or more, got ''"),
        ({"LOCAL_RANK": "-1"}, "environment variable LOCAL_RANK: expected a number of 0 or more, got '-1'"),
        ({"RANK": "1"}, "or neither, got RANK=1"),
        ({"WORLD_SIZE": "2"}, "or neither, got WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "or neither, got RANK=2 and WORLD_SIZE=2"),
    ],
)
def test_variables_that_say_no_rank_are_named(monkeypatch, variables, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="environment variable") as caught:
        Ranks()
    assert str(caught.value).endswith(message)
