"""One weighting in the whole table: categories count alike; and categories of any name are told apart or refused."""

import csv
import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from vscan.config import ReductionConfig
from vscan.eval.cells import Cell, Row
from vscan.eval.scoring import COLUMNS, check_answers
from vscan.eval.table import QUANTILE, WEIGHTS, markdown, paired_interval, summarise, texts, write_csv
from vscan.tools.compare import main, report

DENSE, REDUCED = Cell("dense"), Cell("vscan", ReductionConfig("vscan", 96, {4: 32}), 64)


def row(cell, correct):
    return Row(cell, [""] * len(correct), np.array(correct, dtype=bool), 0, [(0, 576.0)], 1.0)


def asked(*categories, **more):
    """A question each, about a picture each."""
    return [
        {"question_id": number, "text": "?", "answer": "yes", "image": f"{number}.png", "category": category, **more}
        for number, category in enumerate(categories)
    ]


def uneven():
    """Eight questions that all stay right, and two that go wrong."""
    return [row(DENSE, [1] * 10), row(REDUCED, [1] * 8 + [0] * 2)], asked(*["many"] * 8, *["few"] * 2)


def test_the_difference_is_that_of_the_means_and_the_table_says_how_they_are_weighed(tmp_path, monkeypatch):
    monkeypatch.setattr("vscan.eval.chart.plot", lambda *arguments: None)
    rows, questions = uneven()
    dense, reduced = summarise(rows, questions)
    assert (dense.mean, reduced.mean) == (100, 50)
    assert (reduced.difference, reduced.retained) == (-50, 50)
    written = report(rows, questions, tmp_path)
    assert re.search(r"\| vscan 64 +\|.* 50\.0 \| -50\.0 \[", written)
    assert written.endswith(f"|\n\n{WEIGHTS}\n")
    assert (tmp_path / "table.md").read_text() == written
    line = list(csv.DictReader((tmp_path / "table.csv").open()))[1]
    assert float(line["mean"]) - 100 == float(line["difference"])


def test_any_difference_is_that_of_the_means():
    chance = np.random.default_rng(0)
    for _ in range(20):
        questions = asked(*chance.choice(["a", "b", "c"], 40, p=[0.7, 0.2, 0.1]).tolist())
        dense, reduced = summarise([row(cell, chance.random(40) < 0.6) for cell in (DENSE, REDUCED)], questions)
        assert reduced.difference == pytest.approx(reduced.mean - dense.mean, abs=1e-9)


def test_the_interval_is_that_of_the_weighted_cluster_robust_estimator():
    chance = np.random.default_rng(0)
    for _ in range(20):
        n = 30
        kinds = chance.choice(["a", "b", "c"], n, p=[0.7, 0.2, 0.1]).tolist()
        clusters = chance.integers(0, 9, n).tolist()
        one, other = chance.random((2, n)) < 0.6
        weights = [Fraction(1, len(set(kinds)) * kinds.count(kind)) for kind in kinds]
        changes = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
        mean = sum(weight * change for weight, change in zip(weights, changes, strict=True))
        sums = {cluster: Fraction(0) for cluster in clusters}
        for cluster, weight, change in zip(clusters, weights, changes, strict=True):
            sums[cluster] += weight * (change - mean)
        variance = Fraction(len(sums), len(sums) - 1) * sum(each**2 for each in sums.values())
        got = paired_interval(one, other, clusters, np.array(kinds))
        assert got == pytest.approx((float(mean), QUANTILE * math.sqrt(variance)))


def test_where_categories_have_equally_many_questions_nothing_changes():
    """The formula of tables without weights: mean(d), se^2 = G / (G - 1) * sum_g u_g^2 / n^2."""
    chance = np.random.default_rng(1)
    for _ in range(20):
        n, kinds, clusters = 60, chance.permutation(60) % 3, chance.integers(0, 15, 60)
        one, other = chance.random((2, n)) < 0.6
        changes = one.astype(float) - other
        sums = [(changes[clusters == cluster] - changes.mean()).sum() for cluster in set(clusters.tolist())]
        half = QUANTILE * math.sqrt(len(sums) / (len(sums) - 1) * sum(each**2 for each in sums)) / n
        assert paired_interval(one, other, clusters, kinds) == pytest.approx((changes.mean(), half))


# ---------------------------------------------------------------------------------------------------------- categories


def test_a_bar_in_a_category_does_not_end_its_column(tmp_path):
    questions = asked("yes|no", "a")
    check_answers(questions)
    summaries = summarise([row(DENSE, [1, 0])], questions)
    header, _, line = markdown(summaries).splitlines()
    assert [name.strip() for name in re.split(r"(?<!\\)\|", header)[2:4]] == [r"yes\|no", "a"]
    assert [points.strip() for points in line.split("|")[2:4]] == ["100.0", "0.0"]
    write_csv(summaries, tmp_path / "t.csv")
    assert next(csv.DictReader((tmp_path / "t.csv").open()))["yes|no"] == "100.0"


@pytest.mark.parametrize("category", ["two\nlines", "a\r", "a\u2028b", "a\x85", "a\0", "tab\tbed", "", "  ", "\ud800"])
def test_a_category_of_several_lines_or_none_is_refused(category):
    message = f"question file, row 1, question 1: expected category to be one printable line, got {category!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_answers(asked("a", category))


@pytest.mark.parametrize("category", [*COLUMNS, " mean "])
def test_a_category_named_like_another_column_is_refused(category):
    message = "question file, row 1, question 1: expected a category that is no other column of the table, got"
    with pytest.raises(ValueError, match=f"^{re.escape(message)} {category!r}$"):
        check_answers(asked("a", category))


def test_every_column_of_both_tables_is_taken(tmp_path):
    questions = [{**question, "answer": [0, 0, 1, 1]} for question in asked("a")]
    summaries = summarise([row(DENSE, [1]), row(REDUCED, [1])], questions)
    write_csv(summaries, tmp_path / "t.csv")
    columns = {*texts(summaries)[0], *(tmp_path / "t.csv").read_text().splitlines()[0].split(",")}
    assert columns - {"", "a"} == set(COLUMNS)


def test_all_is_a_category_unless_others_are_counted_under_it():
    check_answers(asked("all", "a"))
    questions = asked("all", "a")
    del questions[1]["category"]
    with pytest.raises(ValueError, match=r"row 0, question 0: .* is no other column .* got 'all'"):
        check_answers(questions)
    questions[0]["category"] = "b"
    check_answers(questions)
    assert summarise([row(DENSE, [1, 0])], questions)[0].accuracy == {"b": 100, "all": 0}


# ------------------------------------------------------------------------------------------------------- right answers


@pytest.mark.parametrize("answer", ["", "  ", ".", "\n", [""], ["yes", " . "]])
def test_an_empty_right_answer_is_refused_when_the_questions_are_read(answer, tmp_path):
    (tmp_path / "images").mkdir()
    questions = asked("a", "a")
    questions[1]["answer"] = answer
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    message = f"question file, row 1, question 1: expected an answer that is not empty, got {answer!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        main(["--model-path", "none", "--data", str(tmp_path)])
