"""SEED-Bench (version 1): one letter of four about an image or a video's middle frame.

score              answers -> the share of right letters, for images, videos and each dimension
write_submission   answers -> the jsonl file that SEED-Bench's leaderboard takes
"""

from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import (
    check_entries,
    check_prompts,
    identity,
    percent,
    percent_by,
    read_answers,
    read_json,
    unjoined,
    write_rows,
)
from .questions import read_questions

QUESTIONS = DataFile(("llava-seed-bench.jsonl",), 19242, "questions")
GOLD = DataFile(("SEED-Bench.json",), 19242)
# The question file names "SEED-Bench-image/..." and "SEED-Bench-video-image/...", both in the benchmark's own folder.
IMAGES = DataFile((".",), purpose="images")
LETTERS = "ABCD"


def read_gold(folder: str | Path) -> list[dict]:
    """The questions with their letters, and the name of each one's `dimension`.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    content = read_json(file)
    names = content.get("question_type") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(number, int) for number in names.values()):
        expected = "an object with questions, and question_type from names to ids (int)"
        raise ValueError(f"{file}: expected {expected}, got {str(content)[:60]!r}")
    names = {number: name for name, number in names.items()}
    keys = {"question_id": object, "question": str, "answer": str, "data_type": str, "question_type_id": int}
    entries = check_entries(content.get("questions"), keys, file)
    for number, entry in enumerate(entries):
        if entry["question_type_id"] not in names or entry["data_type"] not in ("image", "video"):
            expected = f"a question_type_id of {sorted(names)} and a data_type image or video"
            got = f"{entry['question_type_id']} and {entry['data_type']!r}"
            raise ValueError(f"{file}, entry {number}: expected {expected}, got {got}")
    return [{**entry, "dimension": names[entry["question_type_id"]]} for entry in entries]


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """The share of answers that are the right letter and nothing else: "A." is wrong, as published.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    questions = read_gold(folder)
    joined = join(questions, read_answers(answers_file), answers_file, identity)
    right = [
        answer is not None and answer["text"] == question["answer"]
        for question, answer in zip(questions, joined, strict=True)
    ]
    pairs = list(zip(questions, right, strict=True))
    return Scores(
        value=percent(right),
        metric="accuracy (%), images and videos",
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=sum(answer is not None and answer["text"] not in tuple(LETTERS) for answer in joined),
        parts={
            **percent_by((question["data_type"], won) for question, won in pairs),
            "dimensions": percent_by((question["dimension"], won) for question, won in pairs),
        },
        notes=check_prompts(questions, joined, answers_file),
    )


def write_submission(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write what the leaderboard takes: a prediction for every question, "" where there is no answer.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    questions = read_gold(folder)
    joined = join(questions, read_answers(answers_file), answers_file, identity)
    write_rows(
        output,
        (
            {"question_id": question["question_id"], "prediction": "" if answer is None else answer["text"]}
            for question, answer in zip(questions, joined, strict=True)
        ),
    )


def check(folder: str | Path) -> list[str]:
    """Whether the question file and the right answers belong together; the latter were revised in November 2023."""
    asked = map(identity, read_questions(QUESTIONS.find(folder)))
    return unjoined(asked, map(identity, read_gold(folder)), GOLD.find(folder).name)


BENCHMARK = Benchmark("seed_bench", "SEED", "seed_bench", (QUESTIONS, GOLD, IMAGES), score, check)
