"""Cells that answer the same questions: what is kept, what is done again, and what is refused."""

import json

import pytest

from vscan.config import ReductionConfig
from vscan.eval.cells import Cell, evaluate
from vscan.eval.runner import Answer, run

CELLS = [Cell("dense"), Cell("vscan", ReductionConfig("vscan", 96, {4: 32}), 64), Cell("odd/name", ReductionConfig())]
QUESTIONS = [
    {"question_id": 0, "text": "yes", "answer": "yes", "image": "a"},
    {"question_id": 0, "text": "[0, 0, 1, 1]", "answer": [0, 0, 1, 1], "image": "b"},
    {"question_id": 1, "text": "no", "answer": "yes", "image": "a"},
    {"question_id": 2, "text": "nowhere", "answer": [0, 0, 1, 1]},
]


class Echo:
    """Answers a question with itself; `asked` is what it was asked, cell by cell."""

    def __init__(self, dies_after: int | None = None):
        self.asked, self.dies_after = [], dies_after

    def __call__(self, cell, todo, answers):
        def reply(items):
            if self.dies_after is not None and len(self.asked) + len(items) > self.dies_after:
                raise KeyboardInterrupt
            self.asked += [(cell.label, item["question_id"], item["text"]) for item in items]
            return [Answer(item["text"], stats(item)) for item in items]

        def stats(item):
            tokens = 100 + 10 * len(item["text"]) if "image" in item else 0
            return {"visual_tokens": tokens, "stages": [[0, tokens], [4, tokens // 2]]}

        run(QUESTIONS, todo, answers, "m", dict, reply, batch_size=2, show_progress=False, together="image")


def go(output, answer, cells=CELLS, questions=QUESTIONS, **record):
    return evaluate(cells, questions, output, {"model": "m", **record}, answer)


def test_every_cell_answers_every_question_once_and_is_scored_in_their_order(tmp_path):
    echo = Echo()
    rows = go(tmp_path, echo)
    assert [row.cell for row in rows] == CELLS
    assert len(echo.asked) == 12
    for row in rows:
        assert row.answers == [question["text"] for question in QUESTIONS]
        assert row.correct.tolist() == [True, True, False, False]
        assert row.num_unparsable == 1
        assert row.stages == [(0, (130 + 220 + 120) / 3), (4, (65 + 110 + 60) / 3)]  # the last question has no image
        assert row.seconds > 0
    assert sorted(file.name for file in tmp_path.glob("*.jsonl") if "stats" not in file.name) == [
        "dense.jsonl",
        "odd-name.jsonl",
        "vscan-64.jsonl",
    ]


@pytest.mark.parametrize("after", [0, 2, 3, 5, 6, 11])
def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path, after):
    killed, second = Echo(after), Echo()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, killed)
    rows = go(tmp_path, second)
    assert sorted(killed.asked + second.asked) == sorted(
        (cell.label, question["question_id"], question["text"]) for cell in CELLS for question in QUESTIONS
    )
    assert [row.correct.tolist() for row in rows] == [[True, True, False, False]] * 3
    again = Echo()
    repeated = go(tmp_path, again)
    assert again.asked == []
    assert [row.seconds for row in repeated] == [row.seconds for row in rows]


def test_a_file_that_was_cut_in_the_middle_of_a_row_loses_that_row_alone(tmp_path):
    whole = go(tmp_path, Echo())
    file = tmp_path / "vscan-64.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    echo = Echo()
    rows = go(tmp_path, echo)
    assert echo.asked == [("vscan", 2, "nowhere")]
    assert rows[1].answers == whole[1].answers
    assert (rows[0].seconds, rows[2].seconds) == (whole[0].seconds, whole[2].seconds)


def test_more_cells_are_added_to_what_is_there(tmp_path):
    go(tmp_path, Echo(), CELLS[:2])
    echo = Echo()
    go(tmp_path, echo)
    assert {label for label, *_ in echo.asked} == {"odd/name"}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"model": "other"}, "model: 'm', now 'other'"),
        ({"questions": [{**QUESTIONS[0], "answer": "no"}, *QUESTIONS[1:]]}, "questions: .*'sha256'"),
        ({"questions": QUESTIONS[:3]}, "questions: {'number': 4, .*'number': 3"),
        ({"cells": [CELLS[0], Cell("vscan", ReductionConfig("vscan", 64), 64)]}, "reduction: .*96.*, now .*64"),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused_before_anything_is_asked(tmp_path, change, differs):
    go(tmp_path, Echo(), CELLS[1:2])
    echo = Echo()
    with pytest.raises(ValueError, match=f"vscan-64.jsonl.*4 rows of another run .*{differs}"):
        go(tmp_path, echo, **{"cells": CELLS, **change})
    assert echo.asked == []


def test_cells_of_one_name_and_questions_of_which_some_have_no_answer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected different names, got more than one that writes to vscan-64\.jsonl"):
        go(tmp_path, Echo(), [*CELLS, CELLS[1]])
    with pytest.raises(ValueError, match="row 0, question 3: expected a key 'answer'"):
        go(tmp_path, Echo(), questions=[{"question_id": 3, "text": "?"}, *QUESTIONS])
    with pytest.raises(ValueError, match="expected right answers where no cell is the dense model, got none"):
        go(tmp_path, Echo(), CELLS[1:], questions=[{"question_id": 3, "text": "?"}])
    assert list(tmp_path.iterdir()) == []


def test_answers_lie_in_files_of_the_published_keys(tmp_path):
    go(tmp_path, Echo())
    for line in (tmp_path / "dense.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
