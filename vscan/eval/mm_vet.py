"""MM-Vet: free answers, which GPT-4 compares with the right ones. Here: what it needs, the sum of its grades, proxies.

write_submission   answers -> {"v1_0": text}, which MM-Vet's evaluator reads
write_for_judge    the same with question and right answer, a line each, for any judge
score              the grades, where a grade file lies beside the answers; else a named proxy alone
"""

import re
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join
from .gold import (
    are_words,
    check_entries,
    check_types,
    percent,
    percent_by,
    read_answers,
    read_json,
    write_json,
    write_rows,
)
from .questions import read_questions

QUESTIONS = DataFile(("llava-mm-vet.jsonl",), 218, "questions")
GOLD = DataFile(("mm-vet.json",), 218, required=False)
PROXY = "share of the right answer's parts that the words hold (%), no judge"


def name_of(question_id) -> str:
    """What the evaluator calls a question, such as "v1_0" for 0. Its picture does not tell: several questions share
    one, "v1_1.png" those of v1_1 and v1_2."""
    text = str(question_id)
    return text if re.fullmatch(r"v\d+_\d+", text) else f"v1_{text}"


def _names(questions: list[dict]) -> list[str]:
    """The questions' names; ValueError where two have the same."""
    names = [name_of(question["question_id"]) for question in questions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"MM-Vet's questions: expected ids that differ, got more than one of {twice!r}")
    return names


def read_gold(folder: str | Path) -> dict[str, dict]:
    """mm-vet.json: {"v1_0": {question, answer, capability}}; none where it is not in the folder."""
    if not GOLD.is_in(folder):
        return {}
    file = GOLD.find(folder)
    content = read_json(file)
    entries = list(content.values()) if isinstance(content, dict) else content
    check_entries(entries, {"question": str, "answer": str, "capability": list}, file)
    check_types(entries, "capability", are_words, "a list of strings", file)
    return dict(zip(content, entries, strict=True))


def _questions(folder: str | Path, gold: dict[str, dict], has_grades: bool) -> tuple[list[dict], list[str]]:
    """The question file's, or mm-vet.json's where that alone is there; grades alone are of the published names.

    Args:
        folder: the benchmark's.
        gold: from `read_gold`.
        has_grades: whether the answers are a grade file.

    Returns:
        The questions, and notes.
    """
    if QUESTIONS.is_in(folder) or not (gold or has_grades):
        return read_questions(QUESTIONS.find(folder)), []
    texts = {name: entry["question"] for name, entry in gold.items()}
    notes = []
    if not gold:
        texts = {f"v1_{row}": "" for row in range(QUESTIONS.num_rows)}
        notes.append(f"no file of questions is here: the grades are taken as those of v1_0 to v1_{len(texts) - 1}")
    # The ids are those that LLaVA's answers have.
    return [{"question_id": name.removeprefix("v1_"), "text": text} for name, text in texts.items()], notes


def read_grades(file: str | Path) -> dict[str, list[float]]:
    """The file that MM-Vet's evaluator writes: {"v1_0": {"model": [..], "content": [..], "score": [0.5, ..]}, ..}.

    Returns:
        For each name its scores, one a run of the judge.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another format, or a score outside [0, 1], naming the entry.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: expected an object from names to grades, got {content!r:.60}")
    grades = {}
    for name, entry in content.items():
        scores = entry.get("score") if isinstance(entry, dict) else entry
        scores = scores if isinstance(scores, list) else [scores]
        if not scores or not all(type(each) in (int, float) and 0 <= each <= 1 for each in scores):
            raise ValueError(f"{file}, entry {name!r}: expected a score in [0, 1] or a list of them, got {entry!r:.60}")
        grades[name] = [float(each) for each in scores]
    return grades


def _holds_grades(answers: Path) -> bool:
    """Whether a file of answers is a grade file: a JSON object, and not one of names and texts."""
    if answers.suffix != ".json":
        return False
    content = read_json(answers)
    return not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values())


def find_grades(answers: Path, folder: Path) -> Path | None:
    """The grade file of some answers, such as results/llava-v1.5-13b_gpt-4-32k-grade-1runs.json: their name and the
    judge's, nothing between. llava-v1.5-13b_lora's grades are another model's.

    Raises:
        ValueError: if there is more than one: which one counts is not for us to say.
    """
    if _holds_grades(answers):
        return answers
    name = re.compile(re.escape(answers.stem) + r"_gpt-[\w.-]+-grade-\d+runs?\.json")
    for place in (answers.parent.glob, Path(folder).rglob):
        found = sorted(file for file in place("*-grade-*.json") if name.fullmatch(file.name))
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise ValueError(f"{answers}: expected one grade file, got {names}; give the one that counts as --answers")
        if found:
            return found[0]
    return None


def proxy(text: str, right: str) -> float:
    """How much of a right answer is in a text: the best of its parts between "<OR>", the share of those between
    "<AND>" that occur as words, in [0, 1]. It is not MM-Vet's metric."""
    text = text.lower()
    best = 0.0
    for choice in right.split("<OR>"):
        parts = [part.strip().lower() for part in choice.split("<AND>")]
        held = [re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None for part in parts if part]
        best = max(best, sum(held) / len(held) if held else 0.0)
    return best


def _texts(answers: Path, questions: list[dict]) -> list[str | None] | None:
    """What was said to each question, from LLaVA's jsonl or a results file; None for a grade file, which has none."""
    if _holds_grades(answers):
        return None
    if answers.suffix == ".json":
        results, names = read_json(answers), _names(questions)
        unknown = sorted(results.keys() - set(names))
        if unknown:
            raise ValueError(f"{answers}: expected texts of the questions' names, got one of {unknown[0]!r}")
        return [results.get(name) for name in names]
    joined = join(questions, read_answers(answers, with_prompt=True), answers, asked)
    return [answer and answer["text"] for answer in joined]


def score(answers: Path, folder: Path) -> Scores:
    """100 times the mean grade; None without a grade file. A question without a grade has 0, and is counted.

    Args:
        answers: LLaVA's jsonl, a results file, or the grade file itself.
        folder: the benchmark's.
    """
    answers = Path(answers)
    gold = read_gold(folder)
    questions, notes = _questions(folder, gold, _holds_grades(answers))
    names = _names(questions)
    texts, grade_file = _texts(answers, questions), find_grades(answers, folder)
    right = [gold.get(name, {}).get("answer") for name in names]
    proxies = {}
    if texts is not None and None not in right:
        proxies[PROXY] = percent([proxy(text or "", each) for text, each in zip(texts, right, strict=True)])
    if grade_file is None:
        note = "No grade file beside the answers: only a judge can score MM-Vet. Its evaluator reads the submission."
        return Scores(None, "mean GPT-4 grade (%)", len(questions), texts.count(None), proxies=proxies, notes=(note,))
    grades = read_grades(grade_file)
    unknown = sorted(grades.keys() - set(names))
    if unknown:
        raise ValueError(f"{grade_file}: expected grades of {names[0]!r} to {names[-1]!r}, got one of {unknown[0]!r}")
    means = [sum(grades[name]) / len(grades[name]) if name in grades else 0.0 for name in names]
    num_ungraded = sum(name not in grades for name in names)
    skills = [(skill, mean) for name, mean in zip(names, means, strict=True) for skill in _skills(gold, name)]
    notes.append(f"grades: {grade_file.name}, {max(map(len, grades.values()), default=0)} run(s) of the judge")
    if num_ungraded:
        notes.append(f"{num_ungraded} questions have no grade and count as 0")
    return Scores(
        value=percent(means),
        metric="mean GPT-4 grade (%)",
        parts=percent_by(skills),
        num_questions=len(questions),
        num_missing=num_ungraded if texts is None else texts.count(None),
        proxies=proxies,
        notes=tuple(notes),
    )


def _skills(gold: dict[str, dict], name: str) -> list[str]:
    return gold.get(name, {}).get("capability", [])


def write_submission(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write what MM-Vet's evaluator reads: {"v1_0": text, ...}.

    Args:
        answers_file: LLaVA's jsonl.
        folder: the benchmark's, or the question file itself.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    file = Path(folder) if Path(folder).is_file() else QUESTIONS.find(folder)
    questions = read_questions(file)
    joined = join(questions, read_answers(answers_file, with_prompt=True), answers_file, asked)
    pairs = zip(_names(questions), joined, strict=True)
    write_json(output, {name: answer["text"] for name, answer in pairs if answer is not None})


def write_for_judge(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write {id, question, answer, pred} for every answer, with the right answers of mm-vet.json, as of videos.

    Raises:
        FileNotFoundError: if a file is missing, such as mm-vet.json.
        ValueError: for answers that are not to these questions, or given twice, or without a right answer.
    """
    file = GOLD.find(folder)
    gold, questions = read_gold(folder), read_questions(QUESTIONS.find(folder))
    joined = join(questions, read_answers(answers_file, with_prompt=True), answers_file, asked)
    rows = []
    for name, answer in zip(_names(questions), joined, strict=True):
        if answer is not None and name not in gold:
            raise ValueError(f"{file}: expected an entry of {name!r}, got none")
        if answer is not None:
            entry = gold[name]
            rows.append({"id": name, "question": entry["question"], "answer": entry["answer"], "pred": answer["text"]})
    write_rows(output, rows)


def check(folder: Path) -> list[str]:
    """Where mm-vet.json is there, it must be of the same questions."""
    names, gold = _names(read_questions(QUESTIONS.find(folder))), read_gold(folder)
    other = sorted(set(names) ^ gold.keys()) if gold else []
    return [f"{len(other)} names are not in both files, the first is {other[0]!r}"] if other else []


BENCHMARK = Benchmark(
    name="mm_vet",
    title="MM-Vet",
    folder="mm-vet",
    files=(QUESTIONS, GOLD, DataFile(("images",), purpose="images")),
    score=score,
    check=check,
)
