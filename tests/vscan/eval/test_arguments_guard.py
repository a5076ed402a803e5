"""The last guard around every command: one line and an exit code, whatever happens; a traceback if it is asked for."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vscan.eval.arguments import Parser, add, positive, run_command
from vscan.eval.guard import WIDTH, shorten

ROOT = Path(__file__).resolve().parents[3]


def ended(main, monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """The exit code of a command, and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


class Stopped(KeyboardInterrupt):
    pass


class OutOfMemoryError(RuntimeError):
    pass


DEBUG = " (VSCAN_DEBUG=1 shows where)"
UNREADABLE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("window: expected an int,\n  got '6'"), 2, "error: window: expected an int, got '6'"),
        (FileNotFoundError("question file: expected a file"), 2, "error: question file: expected a file"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json"), 2, "error: a.json: No such file or "),
        (FileExistsError(errno.EEXIST, "File exists", "out"), 2, "error: out: File exists\n"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 2, "error: a -> b: Invalid link\n"),
        (OSError(errno.ENOSPC, "No space left"), 2, f"error: OSError: [Errno 28] No space left{DEBUG}"),
        (UNREADABLE, 2, "error: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        (json.JSONDecodeError("Expecting value", "", 0), 2, "error: JSONDecodeError: Expecting value: line 1 column 1"),
        (MemoryError(), 2, f"error: MemoryError{DEBUG}\n"),
        (RecursionError("maximum depth"), 2, f"error: RecursionError: maximum depth{DEBUG}\n"),
        (KeyError("question_id"), 2, f"error: KeyError: 'question_id'{DEBUG}\n"),
        (
            OutOfMemoryError("CUDA out of memory.\nTried"),
            2,
            f"error: OutOfMemoryError: CUDA out of memory. Tried{DEBUG}",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "error: BrokenPipeError: "),  # not that of stdout
        (
            Stopped("stopped after 3 rows; the same command goes on"),
            130,
            "stopped after 3 rows; the same command goes on",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_is_raised_ends_in_one_line_and_an_exit_code(error, code, line, monkeypatch, capsys):
    monkeypatch.delenv("VSCAN_DEBUG", raising=False)
    got, said = ended(raising(error), monkeypatch, capsys)
    assert got == code
    assert said.startswith(line)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyError("bad"), Stopped("bad")], ids=lambda error: type(error).__name__
)
def test_the_traceback_is_shown_where_it_is_asked_for(error, monkeypatch, capsys):
    monkeypatch.setenv("VSCAN_DEBUG", "1")
    _, said = ended(raising(error), monkeypatch, capsys)
    assert "Traceback (most recent call last)" in said
    assert ", in main" in said
    assert "bad" in said.splitlines()[-1]


def test_a_changed_library_is_named_without_its_type(monkeypatch, capsys):
    from vscan.compat import LibraryChanged

    error = LibraryChanged("what it was", "another")
    code, said = ended(raising(error), monkeypatch, capsys)
    assert (code, said) == (2, f"error: {' '.join(str(error).split())}\n")


def test_a_command_that_ends_well_or_by_itself_is_left_alone(monkeypatch, capsys):
    assert ended(lambda argv: None, monkeypatch, capsys) == (0, "")
    assert ended(lambda argv: sys.exit(1), monkeypatch, capsys) == (1, "")


def test_a_long_message_is_shown_by_both_ends():
    text = shorten("path: " + "a" * 5000 + ": File name too long")
    assert len(text) <= WIDTH
    assert text.startswith("path: aaa")
    assert text.endswith("a: File name too long")
    assert shorten("a\n  b") == "a b"


def test_a_file_name_of_5000_characters_is_shown_by_its_first(tmp_path, monkeypatch, capsys):
    name = "a" * 5000
    code, said = ended(lambda argv: Path(argv[0]).read_text(), monkeypatch, capsys, name)
    assert code == 2
    assert said.startswith(f"error: {name[:80]}")
    assert said.endswith(": File name too long\n")
    assert len(said) < 300


def test_output_that_nobody_reads_any_more_ends_quietly():
    code = """
from vscan.eval.arguments import run_command
def main(argv):
    for number in range(100_000):
        print(number)
run_command(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as command:
        assert command.stdout.readline() == b"0\n"
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 141


def test_output_that_nobody_reads_is_noticed_at_the_end_as_well():
    code = "from vscan.eval.arguments import run_command; run_command(lambda argv: print(1))"
    read, write = os.pipe()
    os.close(read)
    command = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (command.returncode, command.stderr) == (141, b"")


# --------------------------------------------------------------------------------------------------------- flags


def parser() -> Parser:
    made = Parser(prog="command")
    add(made, "--number", type=positive, required=True)
    add(made, "--kind", choices=["one", "other"], default="one", help="of two")
    return made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: the following arguments are required: --number (see --help)\n"),
        (["--number", "0"], "error: argument --number: expected an int of at least 1, got '0' (see --help)\n"),
        (["--number", "1", "--num", "2"], "error: unrecognized arguments: --num 2 (see --help)\n"),
        (["--number", "1", "--kind", "x"], "error: argument --kind: invalid choice: 'x' (choose from "),
        (["--number"], "error: argument --number: expected one argument (see --help)\n"),
        (["--number", "9" * 5000], "error: argument --number: expected an int of at least 1, got '9999"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, line, monkeypatch, capsys):
    code, said = ended(lambda argv: parser().parse_args(argv), monkeypatch, capsys, *arguments)
    assert code == 2
    assert said.startswith(line)
    assert said.endswith(" (see --help)\n")
    assert said.count("\n") == 1
    assert len(said) < WIDTH + 100


def test_help_says_the_defaults():
    assert "of two; default: one" in parser().format_help()
