"""DocVQA and InfoVQA (validation): text in documents and posters, on which pruning hurts most; scored by ANLS.

score             answers -> average normalised Levenshtein similarity
write_questions   the official file -> LLaVA's question file
"""

from functools import partial
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import (
    SHORT_SUFFIX,
    are_words,
    check_entries,
    check_prompts,
    check_types,
    check_words,
    identity,
    percent,
    percent_by,
    read_answers,
    read_json,
    write_rows,
)
from .normalise import anls

# Name, title, the official files (with and without their types of questions), and folders that pictures may lie in.
NAMES = (
    ("docvqa", "DocVQA", ("val_v1.0_withQT.json", "val_v1.0.json"), ("documents", "images")),
    (
        "infovqa",
        "InfoVQA",
        ("infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json"),
        ("infographicsvqa_images", "images"),
    ),
)


def read_entries(file: str | Path) -> list[dict]:
    """The questions of an official file as they stand in it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file of another format, such as a test split's, which has no answers.
    """
    content = read_json(file)
    entries = content.get("data") if isinstance(content, dict) else content
    check_entries(entries, {"questionId": object, "question": str, "answers": list}, file)
    check_words(entries, file)
    for key in ("question_types", "answer_type"):
        check_types(entries, key, are_words, "a list of strings", file)
    return entries


def read_gold(folder: str | Path, files: tuple[DataFile, ...]) -> list[dict]:
    """The questions with their right answers.

    Returns:
        For each question_id, question, image (the name of its file), answers and `types` (names, or none).

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format.
    """
    file = files[1].find(folder)
    questions = []
    for number, entry in enumerate(read_entries(file)):
        image = entry.get("image", entry.get("image_local_name"))
        if not isinstance(image, str) or not Path(image).name:
            raise ValueError(f"{file}, entry {number}: expected image or image_local_name to be a name, got {image!r}")
        questions.append(
            {
                "question_id": entry["questionId"],
                "question": entry["question"],
                "image": Path(image).name,  # DocVQA's begin with "documents/", the folder that they lie in
                "answers": entry["answers"],
                "types": entry.get("question_types") or entry.get("answer_type") or [],
            }
        )
    return questions


def score(answers_file: str | Path, folder: str | Path, files: tuple[DataFile, ...]) -> Scores:
    """ANLS over all questions, in percent.

    Args:
        answers_file: the answers.
        folder: the benchmark's.
        files: those of the benchmark, as in `Benchmark.files`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice.
    """
    questions = read_gold(folder, files)
    joined = join(questions, read_answers(answers_file), answers_file, identity)
    values = [
        0.0 if answer is None else anls(answer["text"], question["answers"])
        for question, answer in zip(questions, joined, strict=True)
    ]
    pairs = list(zip(questions, values, strict=True))
    types = percent_by((name, value) for question, value in pairs for name in question["types"])
    return Scores(
        value=percent(values),
        metric="ANLS (%)",
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=sum(answer is not None and not answer["text"].strip() for answer in joined),
        parts={"types": types} if types else {},
        notes=check_prompts(questions, joined, answers_file),
    )


def write_questions(folder: str | Path, benchmark: Benchmark, output: str | Path) -> None:
    """Write LLaVA's question file, with its short-answer suffix, from the official one.

    Raises:
        FileNotFoundError: if that is not in the folder.
        ValueError: for a file of another format.
    """
    write_rows(
        output,
        (
            {
                "question_id": question["question_id"],
                "image": question["image"],
                "text": question["question"] + SHORT_SUFFIX,
                "category": "default",
            }
            for question in read_gold(folder, benchmark.files)
        ),
    )


def _benchmark(name: str, title: str, official: tuple[str, ...], images: tuple[str, ...]) -> Benchmark:
    files = (
        DataFile((f"llava_{name}_val.jsonl",), None, "questions"),
        DataFile(official),
        DataFile(images, purpose="images"),
    )
    return Benchmark(name, title, name, files, partial(score, files=files))


BENCHMARKS = tuple(_benchmark(*entry) for entry in NAMES)
