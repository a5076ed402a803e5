"""MMBench's table becomes questions: what pandas does to it, and what it must not do."""

import csv

import pytest

from vscan.eval.mmbench import mmbench_row, read_mmbench, rounds

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "image"]
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def write(folder, *rows, columns=COLUMNS):
    file = folder / "table.tsv"
    with open(file, "w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerows([columns, *rows])
    return file


def test_a_row_becomes_the_published_prompt(tmp_path):
    file = write(tmp_path, ["241", "Which?", "Look.", "one", "two", "three", "", "aGk="])
    (entry,) = read_mmbench(file)
    (question,) = rounds(entry, single_pred_prompt=True)
    assert question["prompt"] == "Look.\nWhich?\nA. one\nB. two\nC. three"
    assert question["text"] == question["prompt"] + SUFFIX
    assert rounds(entry, single_pred_prompt=True, lang="cn")[0]["text"].endswith("\n请直接回答选项字母。")
    assert rounds(entry)[0]["text"] == question["prompt"]
    row = mmbench_row(question, "A", "m")
    assert list(row) == [
        "question_id",
        "round_id",
        "prompt",
        "text",
        "options",
        "option_char",
        "answer_id",
        "model_id",
        "metadata",
    ]
    assert (row["question_id"], row["round_id"], row["text"], row["model_id"]) == (241, 0, "A", "m")
    assert (row["options"], row["option_char"]) == (["one", "two", "three"], ["A", "B", "C"])


def test_all_rounds_rotate_the_options(tmp_path):
    (entry,) = read_mmbench(write(tmp_path, ["1", "Which?", "", "one", "two", "three", "", "aGk="]))
    asked = rounds(entry, all_rounds=True)
    assert [question["round_id"] for question in asked] == [0, 1, 2]
    assert asked[1]["prompt"] == "Which?\nA. two\nB. three\nC. one"
    assert asked[1]["options"] == ["two", "three", "one"]
    assert asked[1]["option_char"] == ["B", "C", "A"]


def test_words_that_pandas_takes_for_nothing_are_options_and_long_pictures_are_read(tmp_path):
    picture = "A" * 200_000  # longer than csv's limit
    quoted = 'She said "no",\nand left.'
    (entry,) = read_mmbench(write(tmp_path, ["7", quoted, "nan", "None", "NA", "null", "nan", picture]))
    assert entry["options"] == ["None", "NA", "null", "nan"]
    assert entry["question"] == quoted
    assert entry["hint"] == "nan"
    assert entry["image_base64"] == picture


def test_a_picture_may_lie_in_another_row(tmp_path):
    rows = [["1", "Which?", "", "a", "b", "", "", "aGk="], ["1000001", "Which?", "", "b", "a", "", "", "1"]]
    assert [entry["image_base64"] for entry in read_mmbench(write(tmp_path, *rows))] == ["aGk=", "aGk="]


def test_a_table_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none"):
        read_mmbench(tmp_path / "none.tsv")
    with pytest.raises(ValueError, match=r"expected the columns \['A', 'image'\], got \['index', 'question'\]"):
        read_mmbench(write(tmp_path, columns=["index", "question"]))
    with pytest.raises(ValueError, match="row 0: expected an index, a question and a picture, got index '1'"):
        read_mmbench(write(tmp_path, ["1", "Which?", "", "a", "b", "", "", "2"]))
    (tmp_path / "table.tsv").write_bytes(b"index\tquestion\tA\timage\n1\t\xff\xfe\ta\tb\n")
    with pytest.raises(ValueError, match=r"table\.tsv: expected a table with tabs between its columns, got "):
        read_mmbench(tmp_path / "table.tsv")
