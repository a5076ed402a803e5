"""VQAv2: what the server of test-dev wants, and accuracy where the answers of ten people are known (val2014).

score              answers -> VQA accuracy, or None for test-dev, which only the server can score
write_submission   answers -> one entry for every question of test2015, as the server demands
"""

from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join
from .gold import check_entries, identity, percent, read_answers, read_json, unjoined, write_json
from .normalise import normalise_evalai, soft_accuracy_official
from .questions import read_questions
from .soft import METRIC, num_empty, read_people, score_soft

QUESTIONS = DataFile(("llava_vqav2_mscoco_test-dev2015.jsonl",), None, "questions")
SUBMITTED = DataFile(("llava_vqav2_mscoco_test2015.jsonl",), None, "questions")
GOLD = DataFile(("v2_mscoco_val2014_annotations.json",), None, required=False)
IMAGES = DataFile(("test2015",), purpose="images")


def read_gold(folder: str | Path) -> list[dict]:
    """The questions of val2014: question_id, answer_type, and `answers`, ten strings.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    content = read_json(file)
    entries = content.get("annotations") if isinstance(content, dict) else content
    return read_people(check_entries(entries, {"question_id": object, "answers": list}, file), file)


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """VQA accuracy of answers to questions of val2014; of answers to test-dev's, how many there are.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    answers = read_answers(answers_file)
    if GOLD.is_in(folder):
        questions = read_gold(folder)
        known = set(map(identity, questions))
        if not answers or any(identity(answer) in known for answer in answers):
            return _score_locally(questions, join(questions, answers, answers_file, identity))
    questions = read_questions(QUESTIONS.find(folder))
    joined = join(questions, read_answers(answers_file, with_prompt=True), answers_file, asked)
    return Scores(
        value=None,
        metric=METRIC,
        num_questions=len(joined),
        num_missing=joined.count(None),
        num_unparsed=num_empty(joined),
        notes=("The answers of test-dev are not public: write the submission and let the server score it.",),
    )


def _score_locally(questions: list[dict], joined: list) -> Scores:
    official = [
        0.0 if answer is None else soft_accuracy_official(answer["text"], question["answers"])
        for question, answer in zip(questions, joined, strict=True)
    ]
    parts = {"official code (words normalised only where people disagree)": percent(official)}
    return score_soft(questions, joined, "Scored on val2014; published numbers are of test-dev.", parts)


def write_submission(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write what the server reads: normalised answers, "" for the questions of test2015 that are not in test-dev.

    Args:
        answers_file: answers to all of test-dev's questions, or of test2015's.
        folder: the benchmark's, with the question files of test-dev and test2015.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, given twice, or missing: the file could not show it.
    """
    questions = read_questions(SUBMITTED.find(folder))
    joined = join(questions, read_answers(answers_file), answers_file, identity)
    unanswered = {identity(question) for question, answer in zip(questions, joined, strict=True) if answer is None}
    missing = [question for question in map(identity, read_questions(QUESTIONS.find(folder))) if question in unanswered]
    if missing:
        problem = f"{len(missing)} are missing, the first is {missing[0]}"
        raise ValueError(f"{answers_file}: expected answers to all questions of test-dev, {problem}")
    entries = [
        {"question_id": question["question_id"], "answer": "" if answer is None else normalise_evalai(answer["text"])}
        for question, answer in zip(questions, joined, strict=True)
    ]
    write_json(output, entries)


def check(folder: str | Path) -> list[str]:
    """Whether test2015 holds all questions of test-dev."""
    questions = set(map(identity, read_questions(QUESTIONS.find(folder))))
    everything = set(map(identity, read_questions(SUBMITTED.find(folder))))
    return unjoined(questions, questions & everything, SUBMITTED.find(folder).name)


BENCHMARK = Benchmark("vqav2", "VQAv2", "vqav2", (QUESTIONS, SUBMITTED, GOLD, IMAGES), score, check)
