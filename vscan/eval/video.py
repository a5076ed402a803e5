"""TGIF-QA, MSVD-QA, MSRVTT-QA and ActivityNet-QA, as Video-LLaVA asks them and Video-ChatGPT's judge scores them.

score              answers -> the judge's verdicts where they lie beside the answers, and proxies in any case
write_for_judge    answers -> {id, question, answer, pred} a line, which a judge reads
tally              verdicts -> accuracy and score as Video-ChatGPT counts them

Verdicts lie beside `answers.jsonl`: a folder `answers.jsonl.judged` with a JSON file a question, or one file, which is
`answers.jsonl.judged.json` (question id -> verdict) or `answers.jsonl.judged.jsonl` (a line a question, with its id).
They may have the names of Video-LLaVA's scripts: `results.json`, or a folder `gpt3.5`, `gpt3.5-0.0` or `gpt3-0.25`.
"""

from functools import partial
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join, read_rows
from .gold import check_prompts, identity, percent, unjoined, write_rows
from .judged import read_verdicts, tally
from .normalise import normalise_evalai
from .video_questions import read_joined

METRIC = "accuracy (%) by a judge"
# Name, title, the published folder, and its number of questions where it is known.
NAMES = (
    ("tgif", "TGIF-QA", "TGIF", 13691),
    ("msvd", "MSVD-QA", "MSVD", None),
    ("msrvtt", "MSRVTT-QA", "MSRVTT", None),
    ("activitynet", "ActivityNet-QA", "Activitynet", 8000),
)
VIDEOS = ("videos/all", "videos", "mp4", "all_test")


def _files(name: str, published: str, num_rows: int | None) -> tuple[DataFile, DataFile, DataFile]:
    """Questions, answers and videos: in the benchmark's folder, or in its published or plain one inside that; the plain
    one may also lie in the eval folder, which the published one is two levels below."""
    inner = f"{published}_Zero_Shot_QA"
    places = ("", f"{inner}/", f"GPT_Zero_Shot_QA/{inner}/", f"{name}/", f"../../{name}/")
    return (
        DataFile(tuple(f"{place}test_q.json" for place in places), num_rows, "questions"),
        DataFile(tuple(f"{place}test_a.json" for place in places), num_rows),
        DataFile(tuple(f"{place}{videos}" for place in places for videos in VIDEOS), purpose="images"),
    )


def read_gold(folder: str | Path, files: tuple[DataFile, ...]) -> list[dict]:
    """The questions with their right answers, joined on question_id and not by their order.

    Returns:
        For each question_id, video_name, question and answer.

    Raises:
        FileNotFoundError: if a file is not in the folder.
        ValueError: for a file of another format, or questions and answers that do not belong together.
    """
    return read_joined(*(file.find(folder) for file in files[:2]))


def read_predictions(file: str | Path) -> list[dict]:
    """Read answers as Video-LLaVA writes them (id, question, answer, pred) or as LLaVA does (question_id, text).

    Returns:
        For each question_id, text, and what the row says of its prompt and right answer, None where it does not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a row of neither form, naming it.
    """
    found = []
    for number, row in enumerate(read_rows(file), start=1):
        question_id, text = row.get("id", row.get("question_id")), row.get("pred", row.get("text"))
        if question_id is None or not isinstance(text, str):
            expected = "id and pred (str), or question_id and text (str)"
            raise ValueError(f"{file}, row {number}: expected {expected}, got {str(row)[:80]!r}")
        key = "prompt" if "prompt" in row else "question"
        prompt = row.get(key)
        if key in row and not isinstance(prompt, str):
            raise ValueError(f"{file}, row {number}: expected {key} (str), got {str(prompt)[:60]}")
        found.append({"question_id": question_id, "text": text, "prompt": prompt, "answer": row.get("answer")})
    return found


def contains(text: str, answer: str) -> bool:
    """Whether the normalised words of an answer stand beside one another in a text."""
    return f" {normalise_evalai(answer)} " in f" {normalise_evalai(text)} "


def score(answers_file: str | Path, folder: str | Path, files: tuple[DataFile, ...]) -> Scores:
    """The judge's accuracy, if there are verdicts, and proxies of it.

    Args:
        answers_file: the answers; verdicts lie beside.
        folder: the benchmark's.
        files: those of the benchmark, as in `Benchmark.files`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers or verdicts that are not to these questions, or given twice.
    """
    questions = read_gold(folder, files)
    joined = join(questions, read_predictions(answers_file), answers_file, identity)
    said = [answer and answer["text"] for answer in joined]
    pairs = list(zip(said, (question["answer"] for question in questions), strict=True))
    exact = [text is not None and normalise_evalai(text) == normalise_evalai(answer) for text, answer in pairs]
    contained = [text is not None and contains(text, answer) for text, answer in pairs]
    foreign = sum(
        answer is not None and answer["answer"] not in (None, question["answer"])
        for question, answer in zip(questions, joined, strict=True)
    )
    notes = [*check_prompts(questions, joined, answers_file)]
    if foreign:
        notes.append(f"{foreign} rows name a right answer that is another question's; test_a.json counts.")
    value, parts, more = _judged(answers_file, questions, joined)
    return Scores(
        value=value,
        metric=METRIC,
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=sum(text is not None and not normalise_evalai(text) for text in said),
        parts=parts,
        proxies={"exact match (%)": percent(exact), "contains the answer (%)": percent(contained)},
        notes=(*notes, *more),
    )


def _judged(answers_file: str | Path, questions: list[dict], joined: list) -> tuple[float | None, dict, list[str]]:
    """The value, parts and notes that the verdicts beside an answers file give."""
    verdicts = read_verdicts(answers_file)
    if verdicts is None:
        return None, {}, ["Only a judge can tell the accuracy: write what it needs, and put its verdicts beside."]
    given = [question for question, answer in zip(questions, joined, strict=True) if answer is not None]
    unknown = set(verdicts) - set(map(identity, given))
    if unknown:
        raise ValueError(f"{answers_file}: expected verdicts on these answers, got one on {min(unknown)!r}")
    tallied = tally(verdicts.values())
    parts: dict = {"verdicts": len(verdicts), "unreadable verdicts": tallied.num_unreadable}
    if tallied.accuracy is not None:
        parts |= {"score (0 to 5)": tallied.score, "yes / (yes + no) (%)": tallied.accuracy}
    notes = []
    if tallied.num_unreadable or len(verdicts) < len(given):
        notes.append(
            f"{len(given) - len(verdicts)} answers have no verdict and {tallied.num_unreadable} an unreadable one: "
            "they count as wrong."
        )
    return 100 * tallied.num_yes / len(questions), parts, notes


def write_for_judge(answers_file: str | Path, folder: str | Path, benchmark: Benchmark, output: str | Path) -> None:
    """Write {id, question, answer, pred} for every answer, with the right answers of test_a.json.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    questions = read_gold(folder, benchmark.files)
    joined = join(questions, read_predictions(answers_file), answers_file, identity)
    check_prompts(questions, joined, answers_file)
    write_rows(
        output,
        (
            {
                "id": question["question_id"],
                "question": question["question"],
                "answer": question["answer"],
                "pred": answer["text"],
            }
            for question, answer in zip(questions, joined, strict=True)
            if answer is not None
        ),
    )


def check(folder: str | Path, files: tuple[DataFile, ...]) -> list[str]:
    """Whether questions and answers belong together, and every video is there; ActivityNet's are named v_NAME."""
    try:
        questions = read_gold(folder, files)
    except ValueError as error:
        return [str(error)]
    stems = {path.stem for path in files[2].find(folder).iterdir()}
    needed = {question["video_name"] for question in questions}
    there = {name for name in needed if stems & {name, f"v_{name}"}}
    return unjoined(needed, there, "the folder of videos")


def _benchmark(name: str, title: str, published: str, num_rows: int | None) -> Benchmark:
    files = _files(name, published, num_rows)
    folder = f"GPT_Zero_Shot_QA/{published}_Zero_Shot_QA"
    return Benchmark(name, title, folder, files, partial(score, files=files), partial(check, files=files))


BENCHMARKS = tuple(_benchmark(*entry) for entry in NAMES)
