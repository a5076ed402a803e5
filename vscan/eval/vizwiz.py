"""VizWiz: questions of blind people about their photographs. The test answers are the server's; val.json is public.

score              answers to val.json's questions -> VQA accuracy; to the test questions -> counts
write_submission   answers to the test questions -> what the server (EvalAI 2185) takes

Answers to val.json join by its rows: question_id is the row's number, and the prompt is the question with the same
ending as LLaVA's test questions have.
"""

from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join
from .gold import SHORT_SUFFIX, check_entries, read_answers, read_json, write_json
from .normalise import normalise_evalai
from .questions import read_questions
from .soft import METRIC, num_empty, read_people, score_soft

QUESTIONS = DataFile(("llava_test.jsonl",), 8000, "questions")
GOLD = DataFile(("val.json", "Annotations/val.json"), required=False)
HINT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def read_gold(folder: str | Path) -> list[dict]:
    """The entries of val.json: image, question and `answers`, ten strings.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    entries = check_entries(read_json(file), {"image": str, "question": str, "answers": list}, file)
    return read_people(entries, file)


def score(answers: Path, folder: Path) -> Scores:
    """VQA accuracy of answers to val.json's questions; of answers to the test questions, how many there are.

    Where `answers_upload/` holds a file of the same name, it is compared with what `write_submission` would write.
    """
    rows = read_answers(answers, with_prompt=True)
    if GOLD.is_in(folder):
        entries = read_gold(folder)
        asked_there = [
            {"question_id": row, "text": entry["question"] + HINT + SHORT_SUFFIX} for row, entry in enumerate(entries)
        ]
        if set(map(asked, rows)) <= set(map(asked, asked_there)):
            joined = join(asked_there, rows, answers, asked)
            return score_soft(entries, joined, "Scored on val; published numbers are of the test.")
    questions = read_questions(QUESTIONS.find(folder))
    joined = join(questions, rows, answers, asked)
    parts, uploaded = {}, Path(folder) / "answers_upload" / f"{Path(answers).stem}.json"
    if uploaded.is_file():
        entries = read_json(uploaded)
        ours = [_entry(*pair) for pair in zip(questions, joined, strict=True) if pair[1] is not None]
        same = sum(one == other for one, other in zip(ours, entries, strict=False))
        parts = {"rows of the upload file": len(entries), "identical rows of the upload file": same}
    return Scores(
        value=None,
        metric=METRIC,
        parts=parts,
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=num_empty(joined),
        notes=("The answers of the test are not public: let the server score the submission.",),
    )


def _entry(question: dict, answer: dict) -> dict:
    return {"image": question["image"], "answer": normalise_evalai(answer["text"])}


def write_submission(answers_file: str | Path, folder: str | Path, output: str | Path) -> None:
    """Write what the server takes: every image of the test with its normalised answer.

    Args:
        answers_file: answers to the test questions.
        folder: the benchmark's, or the question file itself.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, given twice or missing: the file is keyed by the
            image, and so could not show it.
    """
    file = Path(folder) if Path(folder).is_file() else QUESTIONS.find(folder)
    questions = read_questions(file)
    joined = join(questions, read_answers(answers_file, with_prompt=True), answers_file, asked)
    if None in joined:
        row = joined.index(None)
        raise ValueError(
            f"{answers_file}: expected answers to all {len(questions)} questions, {joined.count(None)} are missing, "
            f"the first in row {row} (question {questions[row]['question_id']!r})"
        )
    write_json(output, [_entry(*pair) for pair in zip(questions, joined, strict=True)])


def check(folder: Path) -> list[str]:
    """The submission is keyed by the image: no image may be asked about twice."""
    questions = read_questions(QUESTIONS.find(folder))
    num_images = len({question.get("image") for question in questions})
    if GOLD.is_in(folder):
        read_gold(folder)
    if num_images == len(questions):
        return []
    return [f"expected one question an image, got {len(questions)} questions about {num_images} images"]


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    folder="vizwiz",
    files=(QUESTIONS, GOLD, DataFile(("test",), purpose="images")),
    score=score,
    check=check,
)
