"""VizWiz: the server's file, and the score where the answers of people are public."""

import json
from pathlib import Path

import pytest

from vscan.eval.vizwiz import BENCHMARK, score, write_submission

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "vizwiz"
END = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
SAID = ["Black.", "The two mountain's\t", "Unanswerable"]
UPLOADED = ["black", "2 mountain 's", "unanswerable"]


def jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def folder(tmp_path):
    questions = [{"question_id": row, "image": f"{row}.jpg", "text": "What is this?" + END} for row in range(3)]
    jsonl(tmp_path / "llava_test.jsonl", questions)
    return tmp_path


def answers(folder, rows=(0, 1, 2), prompt="What is this?" + END):
    lines = [{"question_id": row, "prompt": prompt, "text": SAID[row]} for row in rows]
    return jsonl(folder / "answers" / "m.jsonl", lines)


def add_val(folder):
    people = [["black"] * 2 + ["grey"] * 8, ["two mountains"] * 10, ["unanswerable"] * 10]
    entries = [
        {
            "image": f"VizWiz_val_{row}.jpg",
            "question": "What's here?",
            "answers": [{"answer": word, "answer_confidence": "yes"} for word in words],
            "answer_type": "other" if row < 2 else "unanswerable",
        }
        for row, words in enumerate(people)
    ]
    (folder / "val.json").write_text(json.dumps(entries))


def test_the_submission_has_every_image_with_its_normalised_answer(folder):
    write_submission(answers(folder, rows=[2, 0, 1]), folder, folder / "out" / "upload.json")
    expected = [{"image": f"{row}.jpg", "answer": word} for row, word in enumerate(UPLOADED)]
    assert json.loads((folder / "out" / "upload.json").read_text()) == expected
    write_submission(answers(folder), folder / "llava_test.jsonl", folder / "upload.json")
    assert json.loads((folder / "upload.json").read_text()) == expected


def test_a_submission_with_gaps_is_refused(folder):
    with pytest.raises(ValueError, match=r"all 3 questions, 1 are missing, the first in row 1 \(question 1\)"):
        write_submission(answers(folder, rows=[0, 2]), folder, folder / "upload.json")
    assert not (folder / "upload.json").exists()


def test_the_test_has_no_score_here_but_is_compared_with_an_uploaded_file(folder):
    scores = score(answers(folder, rows=[0, 1]), folder)
    assert scores.value is None
    assert (scores.num_questions, scores.num_missing, scores.parts) == (3, 1, {})
    (folder / "answers_upload").mkdir()
    uploaded = [{"image": f"{row}.jpg", "answer": word} for row, word in enumerate(["black", "2 mountains", "no"])]
    (folder / "answers_upload" / "m.json").write_text(json.dumps(uploaded))
    parts = score(answers(folder), folder).parts
    assert parts == {"rows of the upload file": 3, "identical rows of the upload file": 1}


def test_val_is_scored_by_what_people_said(folder):
    add_val(folder)
    scores = score(answers(folder, prompt="What's here?" + END), folder)
    # Two of ten say black: without one of them one is left of three that are needed, else two.
    black = 100 * (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert scores.value == pytest.approx((black + 0 + 100) / 3)
    assert scores.parts == {"other": pytest.approx(black / 2), "unanswerable": 100.0}
    assert "Scored on val" in scores.notes[0]
    assert score(answers(folder, rows=[2], prompt="What's here?" + END), folder).value == pytest.approx(100 / 3)
    assert score(answers(folder), folder).value is None  # answers to the test are still that


def test_other_answers_and_double_images_are_refused(folder):
    with pytest.raises(ValueError, match="row 1: expected an answer to one of the questions"):
        score(answers(folder, prompt="Why?"), folder)
    assert BENCHMARK.check(folder) == []
    file = folder / "llava_test.jsonl"
    file.write_text(file.read_text().replace("1.jpg", "0.jpg"))
    assert BENCHMARK.check(folder) == ["expected one question an image, got 3 questions about 2 images"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_the_published_upload_file_is_made_of_the_published_answers(tmp_path):
    file = PUBLISHED / "answers" / "llava-v1.5-13b.jsonl"
    write_submission(file, PUBLISHED, tmp_path / "upload.json")
    ours = json.loads((tmp_path / "upload.json").read_text())
    assert ours == json.loads((PUBLISHED / "answers_upload" / "llava-v1.5-13b.json").read_text())
    assert len(ours) == 8000
    parts = score(file, PUBLISHED).parts
    assert parts == {"rows of the upload file": 8000, "identical rows of the upload file": 8000}
