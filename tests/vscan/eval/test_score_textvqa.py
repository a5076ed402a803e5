"""TextVQA by a few rows: ids are those of images, so that the prompt says which question an answer belongs to."""

from pathlib import Path

import pytest

from vscan.eval.benchmark import read_rows
from vscan.eval.gold import write_json, write_rows
from vscan.eval.textvqa import BENCHMARK, asked_question, score

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "textvqa"
SUFFIX = "Answer the question using a single word or phrase."
BRAND = ("a1", "What is the Brand?", ["Nokia"] * 10)
NUMBER = ("a1", "what number is it?", ["two"] * 4 + ["3"] * 6)
NAME = ("b2", "Whose name is it?", ["Zoë"] * 5 + ["unanswerable"] * 5)
UNSEEN = ("b2", "Is it new?", ["yes"] * 10)
GOLD = (BRAND, NUMBER, NAME, UNSEEN)


def prompt(gold, ocr="NOKIA, 2"):
    return f"{gold[1]}\nReference OCR token: {ocr}\n{SUFFIX}"


def answer(gold, text, **more):
    return {"question_id": gold[0], "prompt": prompt(gold), "text": text, **more}


@pytest.fixture
def folder(tmp_path):
    entries = [
        {"image_id": image, "question": asked, "answers": people, "question_id": number, "dataset_type": "val"}
        for number, (image, asked, people) in enumerate(GOLD, start=34602)
    ]
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": entries})
    questions = [{"question_id": gold[0], "image": f"{gold[0]}.jpg", "text": prompt(gold)} for gold in GOLD]
    write_rows(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", questions)
    (tmp_path / "train_images").mkdir()
    return tmp_path


def write_answers(folder, *rows):
    write_rows(folder / "answers.jsonl", rows)
    return folder / "answers.jsonl"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (f"What Is it?\nReference OCR token: A, B\n{SUFFIX}", "what is it?"),
        (f"What Is it?\nReference OCR token: \n{SUFFIX}", "what is it?"),  # no words were read: the line stays
        (f"Reference OCR token: A, B\nWhat Is it?\n{SUFFIX}", "what is it?"),
        (f"What Is it?\n{SUFFIX}", "what is it?"),
    ],
)
def test_the_question_is_found_in_a_prompt(text, asked):
    assert asked_question(text) == asked


@pytest.mark.parametrize(
    "text",
    [
        "What is it?",
        f"What is it?\nA, B\n{SUFFIX}",
        f"What is it?\nReference OCR token: A\nB\n{SUFFIX}",
        f"What is it?\nReference OCR token:\n{SUFFIX}",
        "",
    ],
)
def test_a_prompt_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="expected a prompt of a question, a line 'Reference OCR token: '"):
        asked_question(text)


def test_questions_about_one_picture_are_told_apart(folder):
    rows = [answer(NUMBER, "2."), answer(BRAND, "the nokia"), answer(NAME, "zoë")]
    scores = score(write_answers(folder, *rows), folder)
    assert scores.value == pytest.approx(100 * (1 + 1 + 1 + 0) / 4)
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (4, 1, 0)
    swapped = [answer(NUMBER, "nokia"), answer(BRAND, "2"), answer(NAME, ","), answer(UNSEEN, "yes")]
    scores = score(write_answers(folder, *swapped), folder)
    assert (scores.value, scores.num_missing, scores.num_unparsed, scores.notes) == (25, 0, 1, ())


def test_another_task_without_ocr_words_is_noted(folder):
    rows = [answer(BRAND, "nokia", prompt=f"{BRAND[1]}\n{SUFFIX}"), answer(NAME, "x", prompt=prompt(NAME, ocr=""))]
    scores = score(write_answers(folder, *rows), folder)
    assert scores.value == 25
    assert scores.notes == ("1 questions were asked without OCR words, which is another task.",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (answer(("zz", *BRAND[1:]), "x"), "row 2: expected an answer to one of the questions, got one to "),
        (answer(("a1", NAME[1]), "x"), "row 2: expected an answer to one of the questions, got one to "),
        (answer(NAME, "x"), "row 2: expected one answer a question, got another one to "),
        (answer(BRAND, "x", prompt="?"), "answers.jsonl, row 2: expected a prompt of a question"),
        ({"question_id": "a1", "text": "x"}, r"answers.jsonl, line 2: expected prompt \(str\), got none"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, row, message):
    with pytest.raises(ValueError, match=message):
        score(write_answers(folder, answer(NAME, "x"), row), folder)


def test_a_file_of_other_questions_is_refused(folder):
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": [{"image_id": "a1", "question": "?"}]})  # as the test split
    with pytest.raises(ValueError, match=r"TextVQA_0.5.1_val.json, entry 0: expected answers \(list\)"):
        score(write_answers(folder, answer(NAME, "x")), folder)


def test_files_are_checked(folder):
    assert BENCHMARK.check(folder) == []
    write_json(
        folder / "TextVQA_0.5.1_val.json", {"data": [{"image_id": "a1", "question": BRAND[1], "answers": ["x"]}]}
    )
    (problem,) = BENCHMARK.check(folder)
    assert problem.startswith(
        "3 questions have no entry in TextVQA_0.5.1_val.json, such as ('a1', 'what number is it?')"
    )


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published questions are not here")
def test_all_published_prompts_hold_a_question_of_their_own():
    rows = read_rows(PUBLISHED / "llava_textvqa_val_v051_ocr.jsonl")
    assert len({(row["question_id"], asked_question(row["text"])) for row in rows}) == len(rows) == 5000
