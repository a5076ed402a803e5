"""The demo answers its questions in every cell, writes the table, and leaves a page with pictures."""

import csv
import json
import re
from functools import partial

import pytest

from playground.demo import METHODS, TOKENS, main
from playground.tiny import build_checkpoint
from vscan.tools.compare import compare


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    build_checkpoint(folder / "random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("playground.demo.compare", partial(compare, max_new_tokens=1))  # a random model never ends
        main([], folder / "out", num_questions=2, model_path=folder / "random")
    return folder / "out"


def test_every_cell_answers_every_question(ran):
    stages = {}
    for file in (ran / "demo").glob("*.stats.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == 2
        (stages[file.name.split(".jsonl")[0]],) = {json.dumps(row["stages"]) for row in rows}
    expected = {"dense": "[[0, 576]]"}
    for tokens in TOKENS:
        expected |= {f"{method}-{tokens}": f"[[0, {tokens}]]" for method in METHODS if method != "vscan"}
        expected[f"vscan-{tokens}"] = f"[[0, {3 * tokens // 2}], [4, {tokens // 2}]]"
    assert stages == expected


def test_the_table_has_a_row_a_cell(ran):
    with (ran / "demo" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["dense", *(method for method in METHODS for _ in TOKENS)]
    assert all(row["questions"] == "2" for row in rows)


def test_the_page_holds_its_pictures_and_names_every_cell(ran):
    page = (ran / "report.html").read_text()
    assert page.count("<tr") == 2 + len(METHODS) * len(TOKENS)
    for method in METHODS:
        assert f"{method} {TOKENS[-1]}: " in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_demo_takes_no_arguments(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--fast"], tmp_path)
    assert capsys.readouterr().err == "error: unrecognized arguments: --fast (see --help)\n"
