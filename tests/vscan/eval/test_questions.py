"""Question files: what is read, what is refused in which words, how they are cut into chunks."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.eval.questions import check_images, chunk, read_questions

quick = settings(deadline=None, derandomize=True)
QUESTION = {"question_id": 7, "image": "a.png", "text": "What is this?\nAnswer shortly.", "category": "x"}


@pytest.fixture
def written(tmp_path):
    """A function that writes bytes or text to a question file and returns its path."""

    def write(content):
        file = tmp_path / "questions.jsonl"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


# ---------------------------------------------------------------------------------------------------------- reading


def test_questions_are_read_as_they_are_in_their_order(written):
    questions = [QUESTION, {"question_id": "b/1", "text": "Où ?  😀"}, {"text": "", "question_id": None}]
    file = written("".join(json.dumps(question) + "\n" for question in questions))
    assert read_questions(file) == questions
    assert read_questions(str(file)) == questions


def test_utf_8_that_is_not_escaped_is_read(written):
    text = "Où ? 😀 \u2028 \x85"  # the last two end a line for str.splitlines, not in a file
    assert read_questions(written(json.dumps({"question_id": 1, "text": text}, ensure_ascii=False))) == [
        {"question_id": 1, "text": text}
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_and_a_missing_last_line_end_do_no_harm(written, end):
    line = json.dumps(QUESTION)
    assert read_questions(written(end.join(["", line, "", "  \t", line]))) == [QUESTION, QUESTION]
    assert read_questions(written("")) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 4: expected a JSON object, got '{'"),
        ("x" * 100, f"line 4: expected a JSON object, got '{'x' * 60}'"),
        ('{"question_id": 1}', "line 4: expected the keys ['text'], got \"{'question_id': 1}\""),
        ('{"text": "?"}', "line 4: expected the keys ['question_id'], got \"{'text': '?'}\""),
        ("{}", "line 4: expected the keys ['question_id', 'text'], got '{}'"),
        ("7", "line 4: expected a JSON object, got '7'"),
        ("null", "line 4: expected a JSON object, got 'null'"),
        ('["question_id", "text"]', 'line 4: expected a JSON object, got \'["question_id", "text"]\''),
    ],
)
def test_a_line_that_is_no_question_is_named(written, bad, message):
    good = json.dumps(QUESTION)
    file = written(f"{good}\n\n{good}\n{bad}\n{good}\n")
    with pytest.raises(ValueError, match="line 4") as caught:
        read_questions(file)
    assert str(caught.value) == f"{file}, {message}"


@pytest.mark.parametrize(
    ("key", "value"), [("text", 7), ("text", ["a"]), ("image", ["a.png", "b.png"]), ("image", 7), ("text", None)]
)
def test_texts_and_images_are_strings(written, key, value):
    file = written("\n" + json.dumps({**QUESTION, key: value}))
    with pytest.raises(ValueError, match=key) as caught:
        read_questions(file)
    assert str(caught.value) == f"{file}, line 2: expected {key} to be a string, got {value!r}"


@pytest.mark.parametrize("image", [None, ""])
def test_a_question_may_be_without_an_image(written, image):
    question = {**QUESTION, "image": image}
    assert read_questions(written(json.dumps(question))) == [question]


def test_a_line_that_is_no_utf_8_is_named(written):
    file = written(json.dumps(QUESTION).encode() + b'\n{"question_id": 2, "text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="line 2") as caught:
        read_questions(file)
    assert str(caught.value).startswith(f"{file}, line 2: expected ")


def test_a_question_file_that_is_not_there(tmp_path):
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            read_questions(missing)
        assert str(caught.value) == f"question file: expected a file, found none at {str(missing)!r}"


# ----------------------------------------------------------------------------------------------------------- chunks


@quick
@given(num_rows=st.integers(0, 300), num_chunks=st.integers(1, 40))
def test_chunks_are_of_the_published_size_and_hold_every_row_once(num_rows, num_chunks):
    rows = list(range(num_rows))
    chunks = [chunk(rows, num_chunks, index) for index in range(num_chunks)]
    assert [row for part in chunks for row in part] == rows
    size = math.ceil(num_rows / num_chunks)
    published = [rows[start : start + size] for start in range(0, num_rows, size or 1)]
    assert chunks == published + [[]] * (num_chunks - len(published))


@pytest.mark.parametrize(
    ("num_rows", "num_chunks", "sizes"),
    [
        (10, 1, [10]),
        (10, 3, [4, 4, 2]),
        (9, 8, [2, 2, 2, 2, 1, 0, 0, 0]),  # ceil(9 / 8) = 2: the last three are past the end
        (2, 4, [1, 1, 0, 0]),
        (0, 2, [0, 0]),
    ],
)
def test_chunk_sizes(num_rows, num_chunks, sizes):
    assert [len(chunk(list(range(num_rows)), num_chunks, index)) for index in range(num_chunks)] == sizes


@pytest.mark.parametrize(("num_chunks", "index"), [(1, 1), (3, 3), (3, -1), (0, 0), (-1, 0)])
def test_a_chunk_that_there_is_not_is_refused(num_chunks, index):
    with pytest.raises(ValueError, match="chunk-idx") as caught:
        chunk([1, 2, 3], num_chunks, index)
    assert str(caught.value) == f"chunk-idx: expected 0 to num-chunks - 1, got {index} of {num_chunks}"


# ----------------------------------------------------------------------------------------------------------- images


def test_images_that_are_there(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "folder/b.png"):
        (tmp_path / name).touch()
    check_images([QUESTION, {**QUESTION, "image": "folder/b.png"}, {"question_id": 1, "text": "no image"}], tmp_path)
    check_images([{"image": None}, {"image": ""}, {}], str(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b.png", "b.png"], "expected the 2 images that the questions name, 1 are missing: b.png"),
        (["b", "c", "d"], "expected the 3 images that the questions name, 3 are missing: b, c, d"),
        (["e", "a.png", "d", "c", "b"], "expected the 5 images that the questions name, 4 are missing: e, d, c, ..."),
        (["folder"], "expected the 1 images that the questions name, 1 are missing: folder"),
    ],
)
def test_images_that_are_missing_are_named(tmp_path, names, message):
    (tmp_path / "a.png").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        check_images([{"image": name} for name in names], tmp_path)
    assert str(caught.value) == f"image folder {str(tmp_path)!r}: {message}"


@pytest.mark.parametrize("image", ["../a.png", "b/../../a.png", "/a.png", ".."])
def test_an_image_outside_the_folder_is_refused(tmp_path, image):
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="inside the image folder") as caught:
        check_images([{"image": image}], folder)
    assert str(caught.value) == f"expected an image inside the image folder {str(folder)!r}, got {image!r}"


def test_a_way_through_a_folder_that_stays_inside_is_followed(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.png", "..c.png"):
        (tmp_path / name).touch()
    check_images([{"image": "b/../a.png"}, {"image": "./a.png"}, {"image": "..c.png"}], tmp_path)


def test_an_image_folder_that_is_not_there(tmp_path):
    missing = tmp_path / "none"
    with pytest.raises(FileNotFoundError) as caught:
        check_images([], missing)
    assert str(caught.value) == f"image folder: expected a folder, found none at {str(missing)!r}"
