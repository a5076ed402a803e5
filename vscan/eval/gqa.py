"""GQA, the balanced testdev questions: exact words, and where they are right.

score              answers -> accuracy as GQA's own eval.py counts it
write_submission   answers -> testdev_balanced_predictions.json, which that script reads
"""

from collections import Counter, defaultdict
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import (
    check_entries,
    check_prompts,
    check_types,
    identity,
    percent,
    percent_by,
    read_answers,
    read_json,
    unjoined,
    write_json,
)
from .questions import read_questions

QUESTIONS = DataFile(("llava_gqa_testdev_balanced.jsonl",), 12578, "questions")
PLACES = ("", "data/", "data/questions1.2/", "questions1.2/")  # the archive of questions has a folder of its own
GOLD = DataFile(tuple(f"{place}testdev_balanced_questions.json" for place in PLACES), 12578)
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
    keys = {"question": str, "answer": str, "isBalanced": bool, "types": dict}
    entries = check_entries(list(content.values()), keys, file)
    check_types(entries, "types", _are_names, "an object of names", file)
    check_types(entries, "groups", lambda groups: groups is None or _are_names(groups), "an object of names", file)
    check_types(entries, "semantic", _are_steps, "steps with operation and argument (str)", file)
    return [{**entry, "question_id": question_id} for question_id, entry in content.items()]


def _are_names(content) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str | None) for name in content.values())


def _are_steps(content) -> bool:
    """Whether these are the steps of a program; a file may have anything else but a list instead, which is not read."""
    return not isinstance(content, list) or all(
        isinstance(step, dict) and all(isinstance(step.get(key), str) for key in ("operation", "argument"))
        for step in content
    )


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


def write_submission(answers_file: str | Path, output: str | Path) -> int:
    """Write what GQA's eval.py reads, such as testdev_balanced_predictions.json. It refuses one with missing rows.

    Returns:
        How many predictions there are.

    Raises:
        FileNotFoundError: if there is no such answers file.
        ValueError: for one that is none, or has two answers to a question.
    """
    answers = read_answers(answers_file)
    asked = {identity(answer): answer for answer in answers}
    join(list(asked.values()), answers, answers_file, identity)  # refuses second answers
    write_json(output, [{"questionId": name, "prediction": prediction(row["text"])} for name, row in asked.items()])
    return len(asked)


def check(folder: str | Path) -> list[str]:
    """Whether the question file and the right answers belong together."""
    asked = map(identity, read_questions(QUESTIONS.find(folder)))
    balanced = (entry["question_id"] for entry in read_gold(folder) if entry["isBalanced"])
    return unjoined(asked, balanced, GOLD.find(folder).name)


BENCHMARK = Benchmark("gqa", "GQA", "gqa", (QUESTIONS, GOLD, IMAGES), score, check)
