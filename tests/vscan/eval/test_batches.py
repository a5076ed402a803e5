"""How rows are put into batches: full ones in order, or questions about one image together."""

import json
from pathlib import Path

import pytest

from vscan.eval.records import AnswersFile
from vscan.eval.runner import Answer, cut, run


@pytest.mark.parametrize(
    ("rows", "size", "keys", "expected"),
    [
        ([0, 1, 2, 5, 9], 2, None, [[0, 1], [2, 5], [9]]),
        ([3], 4, None, [[3]]),
        ([], 4, None, []),
        ([0, 1, 2, 3, 4, 5], 4, "abcabc", [[0, 3, 1, 4], [2, 5]]),
        ([0, 1, 2, 3, 4], 3, "aabbb", [[0, 1], [2, 3, 4]]),  # b is not cut, though one of it would have had room
        ([0, 1, 2, 3, 4, 5], 2, "aaabbb", [[0, 1], [2], [3, 4], [5]]),
        ([4, 7, 8], 1, "aba", [[4], [8], [7]]),
    ],
)
def test_rows_are_cut_into_batches(rows, size, keys, expected):
    assert cut(rows, size, rows if keys is None else list(keys)) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_rows_of_one_image_come_together_and_end_in_their_places(tmp_path, batch_size, num_workers):
    questions = [{"question_id": number, "text": f"{number}?", "image": f"{number % 4}.png"} for number in range(12)]
    del questions[5]["image"]
    batches = []

    def answer(items):
        batches.append(items)
        return [Answer(f"to {text}", {"visual_tokens": 0}) for text, _ in items]

    file = AnswersFile(tmp_path / "a.jsonl", {})
    common = {"batch_size": batch_size, "num_workers": num_workers, "show_progress": False, "together": "image"}
    run(questions, file.todo(questions), file, "m", prepare, answer, **common)
    assert max(map(len, batches)) <= batch_size
    for image in ("0.png", "2.png", "3.png"):
        assert sum(any(shown == image for _, shown in batch) for batch in batches) == -(-3 // batch_size)
    file.merge()
    rows = [json.loads(line) for line in Path(file.file).read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"to {number}?" for number in range(12)]
    assert file.todo(questions) == []


def prepare(question):
    return question["text"], question.get("image")
