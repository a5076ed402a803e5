"""MME: two questions an image, accuracy and accuracy+, gold from wherever it lies."""

import json

import pytest

from vscan.eval.mme import BENCHMARK, mme_word, score

OURS = "\nAnswer the question using a single word or phrase."
THEIRS = "  Please answer yes or no."  # two spaces, as in some of its files
# (image, question, right, said); ids are those of images, so that each comes twice
ROWS = [
    ("existence/1.jpg", "Is there a cat?", "Yes", "Yes"),
    ("existence/1.jpg", "Is there a dog?", "No", "no."),
    ("existence/2.jpg", "Is there a cat?", "Yes", "The answer is yes"),  # other
    ("existence/2.jpg", "Is there a dog?", "No", "None"),  # no
    ("artwork/images/7.jpg", "Is this in musée d'Orsay?", "No", "Yes\tno\nyes"),
    ("artwork/images/7.jpg", "Is this by Monet?", "Yes", "Oh, yes"),  # "oh, " has no yes
    ("code_reasoning/1.png", "Is it Python?", "Yes", "yes"),
    ("code_reasoning/1.png", "Is it C++?", "No", "Not sure"),  # no
]
ALL = range(len(ROWS))


def jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def gold(folder, layout):
    """What is right, in one of the published layouts."""
    for image, question, right, said in ROWS:
        task, name = image.split("/")[0], image.rsplit("/")[-1].split(".")[0]
        if layout.startswith("eval_tool"):
            file = folder / layout / f"{task}.txt"
            line = f"{name}.jpg\t{question}{THEIRS}\t{right}" + f"\t{said.split()[0]}" * ("Results" not in layout)
        else:
            place = folder / layout / task
            file = (place / "questions_answers_YN" if "images/" in image else place) / f"{name}.txt"
            line = f"{question.replace(' a ', '  a ')}{THEIRS}\t{right}"  # the release's own typing errors
            picture = folder / layout / image
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.touch()
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8", newline="") as stream:
            stream.write(line + "\r\n")


@pytest.fixture
def folder(tmp_path):
    questions = [
        {"question_id": image, "image": image, "text": question + OURS, "category": image.split("/")[0]}
        for image, question, _, _ in ROWS
    ]
    jsonl(tmp_path / "llava_mme.jsonl", questions)
    return tmp_path


def answers(folder, rows=ALL):
    lines = [{"question_id": ROWS[row][0], "prompt": ROWS[row][1] + OURS, "text": ROWS[row][3]} for row in rows]
    return jsonl(folder / "answers" / "a.jsonl", lines)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("no way", "no"),
        ("None", "no"),
        ("Not sure", "no"),
        ("nyes", "yes"),
        ("I know", "other"),  # "i kn"
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_a_word_is_read_as_published(text, word):
    assert mme_word(text) == word


@pytest.mark.parametrize(
    "layout",
    [
        "MME_Benchmark_release_version",
        "MME_Benchmark_release_version/MME_Benchmark",
        "eval_tool/Your_Results",
        "eval_tool/LaVIN",
        "eval_tool/answers/llava-v1.5-7b",
    ],
)
def test_the_score_is_accuracy_and_accuracy_plus(folder, layout):
    gold(folder, layout)
    scores = score(answers(folder), folder)
    assert scores.parts["existence"] == {"score": 125.0, "accuracy": 75.0, "accuracy+": 50.0}
    assert scores.parts["artwork"] == {"score": 0.0, "accuracy": 0.0, "accuracy+": 0.0}
    assert scores.parts["code_reasoning"] == {"score": 200.0, "accuracy": 100.0, "accuracy+": 100.0}
    assert scores.value == scores.parts["perception"] == 125
    assert (scores.parts["cognition"], scores.parts["total"]) == (200, 325)
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (8, 0, 2)
    assert scores.notes == ("the questions are of 3 tasks of 14",)


def test_images_pair_in_any_order_and_a_missing_answer_is_wrong(folder):
    gold(folder, "eval_tool/LaVIN")
    scores = score(answers(folder, rows=[3, 7, 0, 5, 2, 4, 6]), folder)
    assert scores.parts["existence"] == {"score": 50.0, "accuracy": 50.0, "accuracy+": 0.0}
    assert scores.parts["code_reasoning"]["score"] == 200
    assert scores.num_missing == 1


def test_a_row_without_public_gold_is_counted_and_its_image_has_no_accuracy_plus(folder):
    """Ten images more; of one of them a question has no gold."""
    more = [(f"landmark/images/{row // 2}.jpg", f"Is it {row % 2}?", "Yes", "Yes") for row in range(20)]
    rows = [{"question_id": image, "image": image, "text": question + OURS} for image, question, _, _ in more]
    with open(folder / "llava_mme.jsonl", "a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    gold(folder, "eval_tool/LaVIN")
    (folder / "eval_tool" / "LaVIN" / "landmark.txt").write_text(
        "".join(f"{image.rsplit('/')[-1]}\t{question}\tYes\tno\n" for image, question, _, _ in more[1:])
    )
    said = [{"question_id": row["question_id"], "prompt": row["text"], "text": "Yes"} for row in rows]
    said[-1]["text"] = "No"
    file = jsonl(folder / "b.jsonl", [json.loads(line) for line in answers(folder).read_text().splitlines()] + said)
    scores = score(file, folder)
    assert scores.parts["landmark"]["accuracy"] == pytest.approx(100 * 18 / 19)
    assert scores.parts["landmark"]["accuracy+"] == pytest.approx(100 * 8 / 9)
    assert "1 of 28 rows have no public right answer and are not scored" in scores.notes
    assert BENCHMARK.check(folder) == [
        "1 of 28 questions have no right answer, the first is 'Is it 0?' about landmark/images/0.jpg"
    ]


def test_the_releases_files_come_first_and_tables_fill_up(folder):
    gold(folder, "MME_Benchmark_release_version")
    gold(folder, "eval_tool/Your_Results")
    (folder / "MME_Benchmark_release_version" / "existence" / "1.txt").unlink()
    file = folder / "eval_tool" / "Your_Results" / "existence.txt"
    file.write_bytes(
        file.read_bytes().replace(
            b"2.jpg\tIs there a dog?  Please answer yes or no.\tNo", b"2.jpg\tIs there a dog?\tYes"
        )
    )
    scores = score(answers(folder), folder)
    assert scores.parts["existence"]["score"] == 125
    conflict = "1 questions have two right answers, the first that is found counts: existence/2"
    assert conflict in scores.notes
    assert BENCHMARK.check(folder) == [conflict]


def test_missing_and_broken_gold_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="expected text files with the right answers in MME_Benchmark_release"):
        score(answers(folder), folder)
    gold(folder, "eval_tool/LaVIN")
    (folder / "eval_tool" / "LaVIN" / "code_reasoning.txt").unlink()
    with pytest.raises(ValueError, match=r"expected the right answers of code_reasoning in .*, 2 of 2 lack"):
        score(answers(folder), folder)
    (folder / "eval_tool" / "LaVIN" / "code_reasoning.txt").write_text("1.png\tIs it Python?\tTrue\tYes\n")
    with pytest.raises(ValueError, match="line 1: expected an image, a question and Yes or No, with tabs between"):
        score(answers(folder), folder)
    gold(folder, "MME_Benchmark_release_version")
    (folder / "MME_Benchmark_release_version" / "existence" / "1.txt").write_text("Is there a cat? Yes\n")
    with pytest.raises(ValueError, match=r"1.txt, line 1: expected a question and Yes or No, with tabs between"):
        score(answers(folder), folder)


def test_tables_may_hold_answers_with_line_ends_and_other_files(folder):
    gold(folder, "eval_tool/LaVIN")
    file = folder / "eval_tool" / "LaVIN" / "existence.txt"
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\nand more\n\n", 1))
    (folder / "eval_tool" / "LaVIN" / "readme.txt").write_text("a\tb\tc")
    assert score(answers(folder), folder).parts["existence"]["score"] == 125


def test_other_tasks_and_second_answers_are_refused(folder):
    gold(folder, "eval_tool/LaVIN")
    with pytest.raises(ValueError, match="row 9: expected one answer a question"):
        score(answers(folder, rows=[*range(8), 0]), folder)
    file = folder / "llava_mme.jsonl"
    file.write_text(file.read_text().replace("code_reasoning", "cooking"))
    with pytest.raises(ValueError, match="expected an answer to one of the questions, got one to "):
        score(answers(folder), folder)


def test_an_image_with_three_questions_is_told(folder):
    gold(folder, "eval_tool/LaVIN")
    file = folder / "llava_mme.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    assert BENCHMARK.check(folder) == ["1 images have not two questions, the first is existence/1"]


def test_answers_that_were_converted_come_last(folder):
    gold(folder, "eval_tool/LaVIN")
    gold(folder, "eval_tool/answers/m")
    (folder / "eval_tool" / "LaVIN" / "artwork.txt").unlink()
    file = folder / "eval_tool" / "answers" / "m" / "existence.txt"
    file.write_bytes(file.read_bytes().replace(b"\tYes\t", b"\tNo\t"))
    scores = score(answers(folder), folder)
    assert scores.parts["existence"]["score"] == 125
    assert "2 questions have two right answers" in scores.notes[0]


def test_an_image_with_a_lone_question_has_no_accuracy_plus(folder):
    gold(folder, "eval_tool/LaVIN")
    file = folder / "llava_mme.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    scores = score(answers(folder, rows=[0, 1, 2]), folder)
    assert scores.parts["existence"] == {
        "score": pytest.approx(500 / 3),
        "accuracy": pytest.approx(200 / 3),
        "accuracy+": 100,
    }
    assert "1 images have not two questions and count for accuracy alone, not for accuracy+" in scores.notes
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert score(answers(folder, rows=[0]), folder).parts["existence"]["accuracy+"] == 0


def test_a_question_without_words_is_told(folder):
    gold(folder, "eval_tool/LaVIN")
    file = folder / "llava_mme.jsonl"
    file.write_text(file.read_text() + json.dumps({"question_id": "existence/1.jpg", "text": ""}) + "\n")
    assert "1 of 9 questions have no right answer, the first is '' about existence/1.jpg" in BENCHMARK.check(folder)
