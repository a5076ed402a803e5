"""Question files, tables, scores and records that are not what they should be are named when they are read."""

import json
import re

import pytest

from vscan.eval.benchmark import read_rows
from vscan.eval.gold import read_json
from vscan.eval.mmbench import read_table
from vscan.eval.questions import check_asked, read_questions
from vscan.eval.runs import read_runs

# ------------------------------------------------------------------------------------------------------- question files

TEXT = '{"question_id": 0, "text": "?"}\n{"question_id": 1, "text": "caf\u00e9"}\n'


@pytest.mark.parametrize("read_lines", [read_questions, read_rows])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "line 1: expected UTF-8, got UTF-16; save the file as UTF-8"),
        ("utf-16-be", "line 1: expected UTF-8, got UTF-16; save the file as UTF-8"),
        ("utf-32", "line 1: expected UTF-8, got UTF-32; save the file as UTF-8"),
        ("latin-1", "line 2: expected UTF-8, got the byte 0xe9, as Latin-1 has it; save the file as UTF-8"),
    ],
)
def test_lines_in_another_encoding_are_named(tmp_path, encoding, message, read_lines):
    (tmp_path / "q.jsonl").write_bytes(TEXT.encode(encoding))
    with pytest.raises(ValueError, match="UTF-8") as caught:
        read_lines(tmp_path / "q.jsonl")
    assert str(caught.value) == f"{tmp_path / 'q.jsonl'}, {message}"


def test_json_and_tables_in_another_encoding_are_named(tmp_path):
    (tmp_path / "q").write_bytes('[{"id": "caf\u00e9"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match="q: expected JSON, got the byte 0xe9, as Latin-1 has it"):
        read_json(tmp_path / "q")
    (tmp_path / "q").write_bytes("index\tquestion\n1\tcaf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"q: expected a table .*, line 2: expected UTF-8, got the byte 0xe9"):
        read_table(tmp_path / "q", {"index"})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[1, NaN]"])
def test_an_id_that_is_no_number_is_refused_when_it_is_read(tmp_path, number):
    (tmp_path / "q.jsonl").write_text(f'{{"question_id": 0, "text": "?"}}\n{{"question_id": {number}, "text": "?"}}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2: expected a question id with finite numbers, got "):
        read_questions(tmp_path / "q.jsonl")


def test_questions_of_any_kind_of_file_are_looked_at():
    with pytest.raises(ValueError, match="question file 'q': expected at least one question, got none"):
        check_asked([], "q")
    with pytest.raises(ValueError, match="q, entry 1: expected a question id with finite numbers, got nan"):
        check_asked([{"question_id": "a"}, {"question_id": float("nan")}], "q")
    check_asked([{"index": 1}], "q")


# -------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", '{"benchmark": "gqa"}', "expected scores with num_questions"),
        ("answers.jsonl.run.json", "[1]", "expected the record of a run"),
        ("answers.jsonl.run.json", '{"reduction": "vscan"}', "expected reduction to be of type dict, got 'vscan'"),
        ("answers.jsonl.stats.jsonl", "[1]\n", "line 1: expected a JSON object, got '[1]'"),
        ("answers.jsonl.stats.jsonl", '{"seconds": "1"}\n', "line 1: expected an answer's stats, got seconds '1'"),
        ("answers.jsonl.stats.jsonl", '{"stages": [[0]]}\n', "line 1: expected an answer's stats, got stages [[0]]"),
    ],
)
def test_a_report_names_the_record_that_is_broken(tmp_path, name, content, message):
    folder = tmp_path / "llava1_5" / "gqa" / "dense"
    folder.mkdir(parents=True)
    scores = {"benchmark": "gqa", "num_questions": 1, "num_missing": 0, "num_unparsed": 0, "value": 1.0, "parts": {}}
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "answers.jsonl").write_text("")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_runs([tmp_path])
    assert str(caught.value).startswith(str(folder / name))
