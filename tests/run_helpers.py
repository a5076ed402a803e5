"""What tests of runs share: rows in and out, a command's flags and its one line, a run without a model."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from vscan.eval.arguments import run_command
from vscan.eval.records import AnswersFile
from vscan.eval.runner import Answer, run

QUESTIONS = [{"question_id": row // 2, "text": f"{row}?"} for row in range(6)]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def with_context(checkpoint, folder, num_tokens):
    """A copy of a checkpoint, with a context of so many tokens."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": num_tokens}))
    return folder


def flags(folder, questions, *more, images=True):
    """The flags of a command that answers `questions` into a.jsonl beside them."""
    given = {"--model-path": folder, "--question-file": questions, "--answers-file": questions.parent / "a.jsonl"}
    given |= {"--temperature": 0, "--max_new_tokens": 2, "--num-workers": 0, "--device": "cpu"}
    given |= {"--image-folder": questions.parent} if images else {}
    return [str(part) for pair in given.items() for part in pair] + list(more)


def error_of(main, argv, monkeypatch, capsys) -> str:
    """The one line with which a command refuses."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    bars = "row/s|s/row|Loading weights|^$"  # a slow bar counts seconds
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.search(bars, line)]
    assert len(lines) == 1
    return lines[0]


def prepare(question):
    return question["text"]


def reply(items):
    return [Answer(f"to {text}", {"visual_tokens": 0, "stages": [[0, 0]]}) for text in items]


def go(file, config=None, questions=QUESTIONS, **options):
    """One start of a command."""
    answers = AnswersFile(file, {"flag": 1} if config is None else config)
    try:
        options = {"prepare": prepare, "answer": reply, "show_progress": False, **options}
        run(questions, answers.todo(questions), answers, "m", **options)
        answers.merge()
    finally:
        answers.close()
