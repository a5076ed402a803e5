"""The table's arithmetic, its interval against another way to reckon it, and the picture."""

import csv
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from vscan.config import ReductionConfig
from vscan.eval.cells import Cell, Row
from vscan.eval.chart import plot
from vscan.eval.table import markdown, paired_interval, summarise, write_csv

DENSE, REDUCED = Cell("dense"), Cell("vscan", ReductionConfig("vscan", 96, {4: 32}), 64)
QUESTIONS = [  # three on a.png, two on b.png, one on no picture
    {"question_id": 0, "category": "count", "answer": "1", "image": "a.png"},
    {"question_id": 1, "category": "place", "answer": [0, 0, 1, 1], "image": "a.png"},
    {"question_id": 2, "category": "count", "answer": "1", "image": "b.png"},
    {"question_id": 3, "category": "count", "answer": "1", "image": "a.png"},
    {"question_id": 4, "category": "place", "answer": [0, 0, 1, 1], "image": "b.png"},
    {"question_id": 5, "category": "count", "answer": "1"},
]


def row(cell, correct, stages=((0, 576.0),), num_unparsable=0, seconds=1.5):
    return Row(cell, [""] * len(correct), np.array(correct, dtype=bool), num_unparsable, list(stages), seconds)


def rows():
    reduced = row(REDUCED, [1, 0, 0, 0, 1, 1], [(0, 96.0), (4, 32.0)], num_unparsable=2, seconds=0.25)
    return [row(DENSE, [1, 1, 0, 1, 1, 1]), reduced]


def test_accuracies_differences_and_what_is_retained():
    dense, reduced = summarise(rows(), QUESTIONS)
    assert list(dense.accuracy) == ["count", "place"]
    assert dense.accuracy == {"count": 75.0, "place": 100.0}
    assert dense.mean == 87.5
    assert (dense.difference, dense.half_width, dense.retained) == (None, None, 100.0)
    assert reduced.accuracy == {"count": 50.0, "place": 50.0}
    assert reduced.mean == 50.0
    assert reduced.difference == -37.5
    assert reduced.retained == pytest.approx(100 * 50 / 87.5)
    assert (reduced.num_unparsable, reduced.seconds, reduced.stages_text) == (2, 0.25, "0: 96, 4: 32")
    # By hand: d = -1 on one of four questions that count 1/8 and one of two that count 1/4, both on a.png, 0 elsewhere;
    # D = -3/8. In 64ths, w (d - D) is 3 - 10 - 5 = -12 on a.png, 3 + 6 = 9 on b.png and 3 on no picture.
    variance = 3 / 2 * (12**2 + 9**2 + 3**2) / 64**2
    assert reduced.half_width == pytest.approx(100 * 1.959964 * math.sqrt(variance))


def sandwich(differences, clusters):
    """The cluster-robust variance of an intercept-only regression, exactly: (X'X)^-1 sum_g X_g'e_g e_g'X_g (X'X)^-1."""
    n, names = len(differences), sorted(set(clusters))
    mean = Fraction(sum(differences), n)
    meat = Fraction(0)
    for name in names:
        residuals = [d - mean for d, cluster in zip(differences, clusters, strict=True) if cluster == name]
        meat += sum(one * other for one in residuals for other in residuals)  # all pairs within a cluster
    return mean, Fraction(len(names), len(names) - 1) * meat / n**2


def test_the_interval_is_that_of_the_cluster_robust_estimator():
    chance = random.Random(0)
    for _ in range(50):
        n = chance.randrange(4, 60)
        clusters = [chance.randrange(2 + n // 3) for _ in range(n - 2)] + [0, 1]
        one, other = ([chance.random() < 0.6 for _ in range(n)] for _ in range(2))
        mean, variance = sandwich([int(a) - int(b) for a, b in zip(one, other, strict=True)], clusters)
        got = paired_interval(np.array(one), np.array(other), clusters)
        assert got == pytest.approx((float(mean), 1.959964 * math.sqrt(variance)))


def test_with_an_image_a_question_it_is_the_ordinary_interval_of_a_mean():
    one, other = np.array([1, 1, 0, 0, 1, 0, 1], bool), np.array([1, 0, 0, 1, 0, 0, 0], bool)
    ordinary = np.std(one.astype(float) - other, ddof=1) / math.sqrt(7)
    assert paired_interval(one, other, range(7))[1] == pytest.approx(1.959964 * ordinary)
    # Asking every question twice says nothing new.
    twice = paired_interval(np.tile(one, 2), np.tile(other, 2), [*range(7)] * 2)
    assert twice == pytest.approx(paired_interval(one, other, range(7)))


def test_the_interval_covers_the_truth_where_questions_of_an_image_go_wrong_together():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        lost = (generator.random(80) < 0.3).repeat(4)  # the whole image
        mean, half = paired_interval(~lost, np.ones(320, bool), [*np.arange(80).repeat(4)])
        covered += abs(mean + 0.3) <= half
    assert 0.92 <= covered / 400 <= 0.98


def test_there_is_no_interval_from_one_image_and_none_is_printed(tmp_path):
    questions = [{**question, "image": "a.png"} for question in QUESTIONS]
    summaries = summarise(rows(), questions)
    assert math.isnan(summaries[1].half_width)
    assert "| -37.5 |" in " ".join(markdown(summaries).split())
    write_csv(summaries, tmp_path / "t.csv")
    assert next(iter(list(csv.DictReader((tmp_path / "t.csv").open()))[1:]))["low"] == ""


def test_the_table_as_markdown_and_as_csv(tmp_path):
    summaries = summarise(rows(), QUESTIONS)
    lines = markdown(summaries).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])] == [
        ["", "count", "place", "mean", "difference to dense", "retained %", "tokens per layer", "seconds", "no box"],
        ["dense", "75.0", "100.0", "87.5", "", "100.0", "0: 576", "1.5", "0"],
        ["vscan 64", "50.0", "50.0", "50.0", "-37.5 [-94.9, +19.9]", "57.1", "0: 96, 4: 32", "0.2", "2"],
    ]
    assert len({len(line) for line in lines}) == 1
    write_csv(summaries, tmp_path / "t.csv")
    dense, reduced = csv.DictReader((tmp_path / "t.csv").open())
    assert (dense["label"], dense["tokens"], dense["difference"], dense["low"]) == ("dense", "", "", "")
    assert (reduced["label"], reduced["tokens"], reduced["questions"]) == ("vscan", "64", "6")
    assert float(reduced["low"]) < float(reduced["difference"]) < float(reduced["high"])
    assert float(reduced["difference"]) == -37.5
    assert (reduced["tokens per layer"], reduced["unparsable"], reduced["seconds"]) == ("0: 96, 4: 32", "2", "0.25")


def test_without_a_dense_cell_or_without_right_answers_there_is_nothing_to_compare_with():
    (alone,) = summarise(rows()[1:], QUESTIONS)
    assert (alone.difference, alone.half_width, alone.retained) == (None, None, None)
    wrong = summarise([row(DENSE, [0] * 6), row(REDUCED, [0] * 6)], QUESTIONS)
    assert [each.retained for each in wrong] == [None, None]
    assert (wrong[1].difference, wrong[1].half_width) == (0, 0)
    assert "no box" not in markdown(summarise(rows(), [{**question, "answer": "1"} for question in QUESTIONS]))


def test_questions_without_a_category_are_one_category():
    questions = [{"question_id": number, "answer": "1"} for number in range(6)]
    (dense, _) = summarise(rows(), questions)
    assert dense.accuracy == {"all": pytest.approx(100 * 5 / 6)}


@pytest.mark.parametrize("chosen", [slice(None), slice(1), slice(1, None)])
def test_a_picture_is_drawn_for_any_cells(tmp_path, chosen):
    odd = row(Cell("no number of tokens", ReductionConfig("random", 0.2)), [1] * 6)
    more = row(Cell("vscan", ReductionConfig("vscan", 192, {4: 64}), 128), [1, 1, 0, 1, 0, 1])
    plot(summarise([*rows(), odd, more][chosen], QUESTIONS), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (1125, 720)
        pixels = {shade: number for number, shade in image.convert("RGB").getcolors(100000)}
    # Letters hold a few pixels of every grey, a line hundreds.
    assert (pixels.get((0x66, 0x66, 0x66), 0) > 500) == (chosen != slice(1, None))  # the dashed one
    assert (pixels.get((0x00, 0x72, 0xB2), 0) > 500) == (chosen != slice(1))  # VScan's
