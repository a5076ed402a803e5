"""MME: two yes/no questions an image, a score of 0 to 200 a task, summed over perception and cognition.

LLaVA's paper reports perception alone; most papers about fewer tokens report the sum of both ("1862"): `value` is
perception, `parts` has all of it.
"""

from collections import Counter
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join
from .gold import percent, read_answers
from .questions import read_questions

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
SUFFIXES = ("Answer the question using a single word or phrase.", "Please answer yes or no.")
QUESTIONS = DataFile(("llava_mme.jsonl",), 2374, "questions")
RELEASES = ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version")
EVAL_TOOL = ("eval_tool/Your_Results", "eval_tool/LaVIN")
CONVERTED = "eval_tool/answers"  # a folder a model: what convert_answer_to_mme.py writes has the right answers too
PLACES = (*RELEASES, *EVAL_TOOL, f"{CONVERTED}/*")
MOST_UNKNOWN = 0.1  # of a task's rows may lack their right answer; 4 of 2,374 do in the public files
Key = tuple[str, str, str]  # task, the image's name without its ending, question


def mme_word(text: str) -> str:
    """What MME's calculation.py reads in an answer: "yes", "no" or "other".

    Its quirk: beside the bare words, the first four characters decide, "yes" before "no": "None" and "Not sure" are no,
    "The answer is yes" is other.
    """
    text = text.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def _question(text: str) -> str:
    """The bare question: MME and LLaVA put different suffixes behind it, after one space, two or a line end."""
    for suffix in SUFFIXES:
        text = text.replace(suffix, "")
    return " ".join(text.split())


def _key(question: dict) -> Key:
    task, _, rest = str(question["question_id"]).partition("/")
    return task, _stem(rest), _question(question["text"])


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _text_files(folder: Path):
    """Of the official release: (task, the image's name, its text file); five tasks have a folder of their own."""
    for task in sorted(path for path in folder.iterdir() if path.name in TASKS):
        texts = task / "questions_answers_YN"
        for file in sorted((texts if texts.is_dir() else task).glob("*.txt")):
            yield task.name, file.stem, file


def read_gold(folder: str | Path) -> tuple[dict[Key, str], set[Key]]:
    """What is right, from wherever it lies: the release's text files, else the tables of MME's eval_tool.

    Returns:
        What is right, of the first place that says it, and the questions of which another line says something else.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: for a line that is none, naming it.
    """
    right: dict[Key, str] = {}
    conflicts = set()
    releases, tools = ([Path(folder) / path for path in paths] for paths in (RELEASES, EVAL_TOOL))
    converted = sorted((Path(folder) / CONVERTED).glob("*"))
    for source in filter(Path.is_dir, (*releases, *tools, *converted)):
        if source not in releases:
            files = [(file.stem, None, file) for file in sorted(source.glob("*.txt")) if file.stem in TASKS]
        else:
            files = list(_text_files(source))
        for task, image, file in files:
            for key, word in _lines(file, task, image):
                if right.setdefault(key, word) != word:
                    conflicts.add(key)
    if not right:
        places = " or ".join(PLACES)
        raise FileNotFoundError(
            f"expected text files with the right answers in {places} of {str(folder)!r}, found none"
        )
    return right, conflicts


def _conflict_notes(questions: list[dict], conflicts: set[Key]) -> list[str]:
    """A sentence if the files disagree about what is right of some questions."""
    torn = [_key(question) for question in questions if _key(question) in conflicts]
    if not torn:
        return []
    first = "/".join(torn[0][:2])
    return [f"{len(torn)} questions have two right answers, the first that is found counts: {first}"]


def _lines(file: Path, task: str, image: str | None):
    """The lines of a text file: question and answer, behind the image's name where the file is of many images."""
    content = file.read_bytes().decode("utf-8-sig", errors="replace")
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if image is None and len(cells) < 3:
            continue  # the rest of a model's answer that has a line end; a row that is lost so is found unknown
        name, cells = (image, cells) if image else (_stem(cells[0]), cells[1:])
        word = cells[1].strip().lower() if len(cells) > 1 else None
        if word not in ("yes", "no"):
            expected = "a question and Yes or No" if image else "an image, a question and Yes or No"
            raise ValueError(f"{file}, line {number}: expected {expected}, with tabs between, got {line[:80]!r}")
        yield (task, name, _question(cells[0])), word


def _task(rows: list[tuple[str, str | None, str | None]]) -> dict[str, float]:
    """The numbers of one task.

    Args:
        rows: (image, what was said, what is right); the latter is None where that is not public. Such a row is not
            scored, and its image is not scored for both of its questions. Nor is one that has not two questions.
    """
    images: dict[str, list[bool | None]] = {}
    for image, said, right in rows:
        images.setdefault(image, []).append(None if right is None else said == right)
    known = [hit for hits in images.values() for hit in hits if hit is not None]
    whole = [all(hits) for hits in images.values() if None not in hits and len(hits) == 2]
    accuracy, both = (percent(hits) if hits else 0.0 for hits in (known, whole))
    return {"score": accuracy + both, "accuracy": accuracy, "accuracy+": both}


def _by_task(questions: list[dict], said: list[str | None], right: list[str | None], folder: Path) -> dict[str, list]:
    """For each task its rows as `_task` takes them.

    Raises:
        ValueError: for a task that is none of MME's, or whose right answers are not there.
    """
    tasks: dict[str, list] = {}
    for question, word, label in zip(questions, said, right, strict=True):
        task, image, _ = _key(question)
        if task not in TASKS:
            raise ValueError(f"{QUESTIONS.find(folder)}: expected one of MME's 14 tasks, got {task!r}")
        tasks.setdefault(task, []).append((image, word, label))
    for task, rows in tasks.items():
        unknown = sum(label is None for *_, label in rows)
        if unknown > MOST_UNKNOWN * len(rows):
            places = " or ".join(PLACES)
            raise ValueError(
                f"{folder}: expected the right answers of {task} in {places}, {unknown} of {len(rows)} lack"
            )
    return tasks


def score(answers: Path, folder: Path) -> Scores:
    """Per task accuracy over questions plus accuracy+ over images (both questions right); images pair by their name."""
    questions, (gold, conflicts) = read_questions(QUESTIONS.find(folder)), read_gold(folder)
    joined = join(questions, read_answers(answers, with_prompt=True), answers, asked)
    said = [answer and mme_word(answer["text"]) for answer in joined]
    right = [gold.get(_key(question)) for question in questions]
    tasks = _by_task(questions, said, right, folder)
    parts = {task: _task(tasks[task]) for task in TASKS if task in tasks}
    perception, cognition = (
        sum(part["score"] for task, part in parts.items() if task in kind) for kind in (PERCEPTION, COGNITION)
    )
    notes = _conflict_notes(questions, conflicts)
    if None in right:
        notes.append(f"{right.count(None)} of {len(right)} rows have no public right answer and are not scored")
    if odd := _odd_images(questions):
        notes.append(f"{len(odd)} images have not two questions and count for accuracy alone, not for accuracy+")
    if len(tasks) < len(TASKS):
        notes.append(f"the questions are of {len(tasks)} tasks of 14")
    return Scores(
        value=perception,
        metric="perception, of at most 2000",
        parts={"perception": perception, "cognition": cognition, "total": perception + cognition, **parts},
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=said.count("other"),
        notes=tuple(notes),
    )


def _odd_images(questions: list[dict]) -> list[tuple[str, str]]:
    """Images, as task and name, that have not two questions."""
    numbers = Counter(_key(question)[:2] for question in questions)
    return [image for image, number in numbers.items() if number != 2]


def check(folder: Path) -> list[str]:
    """Every question must find what is right, and every image must have two questions."""
    questions, (gold, conflicts) = read_questions(QUESTIONS.find(folder)), read_gold(folder)
    problems = _conflict_notes(questions, conflicts)
    unknown = [question for question in questions if _key(question) not in gold]
    if unknown:
        text = unknown[0]["text"].split("\n", 1)[0]
        first = f"the first is {text!r} about {unknown[0]['question_id']}"
        problems.append(f"{len(unknown)} of {len(questions)} questions have no right answer, {first}")
    odd = _odd_images(questions)
    if odd:
        problems.append(f"{len(odd)} images have not two questions, the first is {'/'.join(odd[0])}")
    return problems


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    folder="MME",
    files=(
        QUESTIONS,
        DataFile(RELEASES, purpose="images"),
        DataFile((*RELEASES, *EVAL_TOOL, CONVERTED)),
    ),
    score=score,
    check=check,
)
