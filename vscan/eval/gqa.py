"""GQA, the balanced testdev questions: exact words, and where they are right.

score              answers -> accuracy as GQA's own eval.py counts it
write_submission   answers -> testdev_balanced_predictions.json, which that script reads
"""

from collections import Counter, defaultdict
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join, read_rows
from .gold import (
    check_entries,
    check_prompts,
    identity,
    percent,
    percent_by,
    read_answers,
    read_json,
    unjoined,
    write_json,
)

QUESTIONS = DataFile(("llava_gqa_testdev_balanced.jsonl",), 12578, "questions")
GOLD = DataFile(("testdev_balanced_questions.json", "data/testdev_balanced_questions.json"), 12578)
IMAGES = DataFile(("data/images", "images"), purpose="images")
UNCOUNTED_STEPS = ("exist", "query: name", "choose name")  # parts of a program that are no steps of reasoning


def prediction(text: str) -> str:
    """What LLaVA hands in: lower case, without full stops at the end; articles and spaces stay, and cost."""
    return text.rstrip(".").lower()


def read_gold(folder: str | Path) -> list[dict]:
    """The questions with their right answers, in the order of their file; question_id is in each.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object from question ids to questions, got a list")
    check_entries(list(content.values()), {"question": str, "answer": str, "isBalanced": bool, "types": dict}, file)
    return [{**entry, "question_id": question_id} for question_id, entry in content.items()]


def _num_steps(question: dict) -> int:
    """Steps of the program that a question stands for, as eval.py counts them."""
    steps = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(name in step for name in UNCOUNTED_STEPS) for step in steps)


def _distribution(questions: list[dict], predictions: list[str | None]) -> float | None:
    """How far what is said is from what is true within groups of like questions; 0 is best. eval.py's chi-square.

    Returns:
        The mean over groups by their size, divided by 100 as published; None where the file names no groups.
    """
    gold, said = defaultdict(Counter), defaultdict(Counter)
    for question, words in zip(questions, predictions, strict=True):
        group = (question.get("groups") or {}).get("global")
        if group is not None:
            gold[group][question["answer"]] += 1
            said[group][words] += 1
    if not gold:
        return None
    total = 0.0
    for group, counts in gold.items():
        distance = sum((said[group][answer] - count) ** 2 / count for answer, count in counts.items())
        total += distance * counts.total()
    return total / sum(counts.total() for counts in gold.values()) / 100


def _parts(questions: list[dict], predictions: list[str | None], right: list[bool]) -> dict:
    """The published table: each kind of question by itself."""
    pairs = list(zip(questions, right, strict=True))
    kinds = (("open" if question["types"].get("structural") == "query" else "binary", won) for question, won in pairs)
    parts: dict = percent_by(kinds)
    for kind in ("structural", "semantic", "detailed"):
        found = percent_by((question["types"][kind], won) for question, won in pairs if question["types"].get(kind))
        if found:
            parts[kind] = found
    parts["length"] = _by_number((len(question["question"].split()), won) for question, won in pairs)
    if all(isinstance(question.get("semantic"), list) for question in questions):
        parts["steps"] = _by_number((_num_steps(question), won) for question, won in pairs)
    distribution = _distribution(questions, predictions)
    return parts if distribution is None else {**parts, "distribution": distribution}


def _by_number(pairs) -> dict[str, float]:
    return {str(number): share for number, share in percent_by(pairs).items()}


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """Accuracy over the balanced questions.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    everything = read_gold(folder)
    joined = join(everything, read_answers(answers_file), answers_file, identity)
    notes = check_prompts(everything, joined, answers_file)
    pairs = [pair for pair in zip(everything, joined, strict=True) if pair[0]["isBalanced"]]
    if not pairs:
        raise ValueError(f"{GOLD.find(folder)}: expected balanced questions, got none")
    questions = [question for question, _ in pairs]
    predictions = [None if answer is None else prediction(answer["text"]) for _, answer in pairs]
    right = [words == question["answer"] for words, question in zip(predictions, questions, strict=True)]
    return Scores(
        value=percent(right),
        metric="accuracy (%)",
        num_questions=len(questions),
        num_missing=predictions.count(None),
        num_unparsed=sum(words is not None and not words.strip() for words in predictions),
        parts=_parts(questions, predictions, right),
        notes=notes,
    )


def write_submission(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write what GQA's eval.py reads, such as testdev_balanced_predictions.json. It refuses one with missing rows.

    Args:
        answers_file: the answers.
        folder: the benchmark's; its question file says which answers belong here.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    joined = join(read_rows(QUESTIONS.find(folder)), read_answers(answers_file), answers_file, identity)
    answers = [answer for answer in joined if answer is not None]
    write_json(output, [{"questionId": identity(row), "prediction": prediction(row["text"])} for row in answers])


def check(folder: str | Path) -> list[str]:
    """Whether the question file and the right answers belong together."""
    asked = map(identity, read_rows(QUESTIONS.find(folder)))
    balanced = (entry["question_id"] for entry in read_gold(folder) if entry["isBalanced"])
    return unjoined(asked, balanced, GOLD.find(folder).name)


BENCHMARK = Benchmark("gqa", "GQA", "gqa", (QUESTIONS, GOLD, IMAGES), score, check)
