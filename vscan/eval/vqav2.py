"""VQAv2: what the server of test-dev wants, and accuracy where the answers of ten people are known (val2014).

score              answers -> VQA accuracy, or None for test-dev, which only the server can score
write_submission   answers -> one entry for every question of test2015, as the server demands
"""

from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join, read_rows
from .gold import check_entries, identity, percent, percent_by, read_answers, read_json, unjoined, write_json
from .normalise import normalise_evalai, soft_accuracy, soft_accuracy_official

QUESTIONS = DataFile(("llava_vqav2_mscoco_test-dev2015.jsonl",), None, "questions")
SUBMITTED = DataFile(("llava_vqav2_mscoco_test2015.jsonl",), None, "questions")
GOLD = DataFile(("v2_mscoco_val2014_annotations.json",), None, required=False)
IMAGES = DataFile(("test2015",), purpose="images")
METRIC = "VQA accuracy (%), all words normalised"


def read_gold(folder: str | Path) -> list[dict]:
    """The questions of val2014: question_id, answer_type, and `answers`, ten strings.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    content = read_json(file)
    entries = content.get("annotations") if isinstance(content, dict) else content
    questions = []
    for number, entry in enumerate(check_entries(entries, {"question_id": object, "answers": list}, file)):
        people = check_entries(entry["answers"], {"answer": str}, f"{file}, entry {number}, answers")
        words = [person["answer"] for person in people]
        kind = entry.get("answer_type", "any")
        questions.append({"question_id": entry["question_id"], "answer_type": kind, "answers": words})
    return questions


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """VQA accuracy of answers to questions of val2014; of answers to test-dev's, how many there are.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    answers = read_answers(answers_file)
    if any((Path(folder) / path).exists() for path in GOLD.paths):
        questions = read_gold(folder)
        known = set(map(identity, questions))
        if not answers or any(identity(answer) in known for answer in answers):
            return _score_locally(questions, join(questions, answers, answers_file, identity))
    joined = join(read_rows(QUESTIONS.find(folder)), answers, answers_file, asked)
    return Scores(
        value=None,
        metric=METRIC,
        num_questions=len(joined),
        num_missing=joined.count(None),
        num_unparsed=sum(answer is not None and not normalise_evalai(answer["text"]) for answer in joined),
        notes=("The answers of test-dev are not public: write the submission and let the server score it.",),
    )


def _score_locally(questions: list[dict], joined: list) -> Scores:
    soft, official = [], []
    for question, answer in zip(questions, joined, strict=True):
        soft.append(0.0 if answer is None else soft_accuracy(answer["text"], question["answers"]))
        official.append(0.0 if answer is None else soft_accuracy_official(answer["text"], question["answers"]))
    kinds = percent_by((question["answer_type"], value) for question, value in zip(questions, soft, strict=True))
    return Scores(
        value=percent(soft),
        metric=METRIC,
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=sum(answer is not None and not normalise_evalai(answer["text"]) for answer in joined),
        parts={**kinds, "official code (words normalised only where people disagree)": percent(official)},
        notes=("Scored on val2014; published numbers are of test-dev.",),
    )


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
    questions = read_rows(SUBMITTED.find(folder))
    joined = join(questions, read_answers(answers_file), answers_file, identity)
    unanswered = {identity(question) for question, answer in zip(questions, joined, strict=True) if answer is None}
    missing = [question for question in map(identity, read_rows(QUESTIONS.find(folder))) if question in unanswered]
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
    questions = set(map(identity, read_rows(QUESTIONS.find(folder))))
    everything = set(map(identity, read_rows(SUBMITTED.find(folder))))
    return unjoined(questions, questions & everything, SUBMITTED.find(folder).name)


BENCHMARK = Benchmark("vqav2", "VQAv2", "vqav2", (QUESTIONS, SUBMITTED, GOLD, IMAGES), score, check)
