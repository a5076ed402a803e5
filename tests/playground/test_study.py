"""The studies: their cells, every name end to end on the random tiny model, and what is wrong said in one line."""

import csv
import json
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from llava.eval.answering import load_checked
from playground.scenes.files import write_benchmark
from playground.studies import charts
from playground.studies.attention import DISTANCE, MASS
from playground.studies.dense import Reader, preparation, tower_looks
from playground.studies.layers import means_of, write_tables
from playground.studies.lens import ALL, by_kind, settle
from playground.studies.results import mean_half_width
from playground.studies.setting import Setting
from playground.studies.sweeps import Depths, build, layer_schedule
from playground.study import main
from vscan.config import ReductionConfig
from vscan.eval.questions import read_questions
from vscan.eval.table import QUANTILE, paired_interval
from vscan.flops import average_tokens, tokens_per_layer
from vscan.tools.compare import compare

TINY = Depths(num_layers=8, num_vision_layers=6, num_tokens=576, global_layer=4, prune_layer=4)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's two questions about a picture that is no square."""
    data = tmp_path_factory.mktemp("own")
    (data / "images").mkdir()
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 20).save(data / "images" / "a.png")
    rows = [
        {"question_id": 0, "image": "a.png", "text": "What is this?", "category": "words", "answer": ["a set", "A"]},
        {"question_id": 1, "image": "a.png", "text": "Where?", "category": "box", "answer": [0.25, 0.25, 0.5, 0.5]},
    ]
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def half_width_of(values, clusters):
    """The formula of `vscan.eval.table`, written out: of the mean of values [n] in G clusters."""
    values, clusters = np.asarray(values, float), np.asarray(clusters)
    sums = [(values[clusters == cluster] - values.mean()).sum() for cluster in set(clusters.tolist())]
    return QUANTILE * math.sqrt(len(sums) / (len(sums) - 1) * sum(u**2 for u in sums)) / len(values)


def read_table(file):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def interval_in(row, name):
    """What a line of table.csv says of a measure: mean, lower and upper end."""
    return tuple(float(row[column]) for column in (name, f"{name} low", f"{name} high"))


def reductions(name, tokens=64):
    sweep = build(name, TINY, tokens)
    return {series: [(x, cell.reduction) for x, cell in line] for series, line in sweep.series.items()}, sweep


@given(st.integers(2, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), st.integers(1, 700))
@example((3, 2), 2)
def test_layer_budgets_meet_the_average_within_half_a_token(depths, average):
    num_layers, layer = depths
    early, late = layer_schedule(average, num_layers, layer)
    met = average_tokens(tokens_per_layer(num_layers, early, ((layer, late),)))
    assert early >= late >= 1
    assert abs(met - average) < 0.5
    assert abs(late - num_layers * average / (num_layers + 2 * layer)) <= 1


def test_in_the_middle_the_budgets_are_the_papers():
    assert [layer_schedule(average, 32, 16) for average in (192, 128, 64)] == [(288, 96), (192, 64), (96, 32)]


def test_the_layer_sweep_prunes_before_every_layer_but_the_first():
    series, sweep = reductions("layer")
    assert [x for x, _ in series["two stages"]] == [1, 2, 3, 4, 5, 6, 7]
    assert series["two stages"][3][1] == ReductionConfig("vscan", 96, {4: 32})
    assert series["two stages"][6][1] == ReductionConfig("vscan", 70, {7: 23})
    assert sweep.series["two stages"][6][1].tokens == 64.125
    references = {name: cell.reduction for name, cell in sweep.references.items()}
    assert references == {"dense": None, "stage 1 alone": ReductionConfig("vscan", 64)}


def test_the_cells_of_the_other_sweeps():
    two = (96, {4: 32})
    split, _ = reductions("split")
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert split["two stages"] == [(s, ReductionConfig("vscan", *two, fields={"global_share": s})) for s in shares]
    assert split["stage 1 alone"] == [(s, ReductionConfig("vscan", 64, fields={"global_share": s})) for s in shares]
    shallow, _ = reductions("shallow")
    assert shallow == {"two stages": [(n, ReductionConfig("vscan", *two, fields={"local_layer": n})) for n in range(4)]}
    budgets = {192: (288, {4: 96}), 128: (192, {4: 64}), 64: two}
    merge, sweep = reductions("merge")
    assert sweep.pairs == {"merged": "dropped"}
    for name, value in (("merged", True), ("dropped", False)):
        expected = [(n, ReductionConfig("vscan", *both, fields={"merge": value})) for n, both in budgets.items()]
        assert merge[name] == expected
    positions, sweep = reductions("positions")
    assert list(sweep.references) == ["dense"]
    for kind in ("compact", "original"):
        assert positions[f"vscan {kind}"] == [(n, ReductionConfig("vscan", *b, kind)) for n, b in budgets.items()]
        assert positions[f"random {kind}"] == [(n, ReductionConfig("random", n, (), kind)) for n in budgets]


def test_the_interval_of_a_mean_is_the_plain_one_where_kinds_are_equally_many():
    chance = np.random.default_rng(0)
    correct, kinds, images = chance.random(60) < 0.6, np.arange(60) % 3, np.arange(60) // 3
    plain = paired_interval(correct, np.zeros(60), images)[1]
    assert mean_half_width(correct, kinds, images) == pytest.approx(plain)


def test_means_leave_out_what_has_no_number():
    chance = np.random.default_rng(0)
    values, pictures = chance.random((9, 2, 3)), [0, 0, 1, 1, 1, 2, 3, 3, 4]
    values[:, 0, 1] = np.nan
    values[2:, 1, 0] = np.nan  # the other two are about one picture
    values[[0, 5], 1, 2] = np.nan
    means = means_of(values, pictures)
    assert means.values.shape == means.half_widths.shape == (2, 3)
    assert np.isnan(means.values).tolist() == [[False, True, False], [False, False, False]]
    assert np.isnan(means.half_widths).tolist() == [[False, True, False], [True, False, False]]
    assert means.values[1, 0] == pytest.approx(values[:2, 1, 0].mean())
    chosen = [1, 2, 3, 4, 6, 7, 8]
    assert means.values[1, 2] == pytest.approx(values[chosen, 1, 2].mean())
    expected = half_width_of(values[chosen, 1, 2], np.array(pictures)[chosen])
    assert means.half_widths[1, 2] == pytest.approx(expected)


def test_a_table_by_layer_has_half_widths_to_read_and_ends_with_all_digits(tmp_path):
    tower = {"AUC things": means_of(np.array([[0.5, 0.5], [0.75, 0.5]]), "ab")}
    decoder = {"visual %": means_of(np.array([[20.0], [30.0]]), "aa")}
    text = write_tables({"block": tower, "layer": decoder}, "Two pictures.\n", tmp_path)
    assert text.splitlines() == [
        "| block | AUC things |   +- |",
        "| ----- | ---------: | ---: |",
        "| 0     |       0.62 | 0.24 |",
        "| 1     |       0.50 | 0.00 |",
        "",
        "| layer | visual % | +- |",
        "| ----- | -------: | -: |",
        "| 0     |     25.0 |    |",
        "",
        "Two pictures.",
        "Intervals: 95 %, robust to several questions about one image.",
    ]
    first, second, third = read_table(tmp_path / "table.csv")
    # The standard error of a mean of two is half their difference.
    assert interval_in(first, "AUC things") == pytest.approx(
        (0.625, 0.625 - 0.125 * QUANTILE, 0.625 + 0.125 * QUANTILE)
    )
    assert interval_in(second, "AUC things") == (0.5, 0.5, 0.5)
    assert (first["visual %"], first["visual % low"]) == ("", "")
    assert (third["part"], third["visual %"], third["visual % low"], third["visual % high"]) == (
        "layer",
        "25.0",
        "",
        "",
    )
    write_tables({"layer": decoder}, "", tmp_path)
    assert (tmp_path / "table.csv").read_text().splitlines()[0] == "layer,visual %,visual % low,visual % high"


def test_questions_asked_twice_tell_the_lens_nothing_new():
    chance = np.random.default_rng(0)
    flags, kinds, images = chance.random((3, 12)) < 0.5, ["a", "b", "c"] * 4, np.arange(12) // 3
    once = by_kind(flags, kinds, images)
    assert list(once) == [ALL, "a", "b", "c"]
    twice = by_kind(np.tile(flags, 2), kinds * 2, np.tile(images, 2))
    as_new = by_kind(np.tile(flags, 2), kinds * 2, np.concatenate([images, images + 4]))
    for name, means in once.items():
        np.testing.assert_allclose(twice[name].values, means.values)
        np.testing.assert_allclose(twice[name].half_widths, means.half_widths)
        # Were they about other pictures, there were 8 clusters: 8 / 7 * 2 u^2 / (2 n)^2 against 4 / 3 * u^2 / n^2.
        np.testing.assert_allclose(as_new[name].half_widths, means.half_widths * math.sqrt(3 / 7))
    # One picture's questions alone: it counts twice in the mean, and is one cluster still.
    flags, kinds, images = np.hstack([flags, flags[:, :3]]), [*kinds, "a", "b", "c"], [*images, 0, 0, 0]
    more = by_kind(flags, kinds, images)
    for layer in range(3):
        expected = half_width_of(100 * flags[layer], images)
        assert more[ALL].half_widths[layer] == pytest.approx(expected)
        expected = half_width_of(100 * flags[layer, ::3], [0, 1, 2, 3, 0])
        assert more["a"].half_widths[layer] == pytest.approx(expected)


@pytest.fixture
def two_charts(rough_figures, monkeypatch):
    """Of sweeps, one with pairs and one without are drawn; of the others there is a picture without anything."""
    missing, draw = [True, False], charts.plot_sweep

    def draw_some(points, sweep, file):
        if bool(sweep.pairs) in missing:
            missing.remove(bool(sweep.pairs))
            draw(points, sweep, file)
        else:
            Image.new("RGB", (400, 1)).save(file)

    monkeypatch.setattr(charts, "plot_sweep", draw_some)


@pytest.mark.usefixtures("two_charts")
def test_every_study_runs_on_own_data_and_goes_on_where_it_stopped(checkpoint, own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vscan.tools.compare.compare", partial(compare, max_new_tokens=1))  # a random model never ends
    flags = ["--model-path", str(checkpoint), "--data", str(own), "--output", str(tmp_path), "--batch-size", "2"]
    main(["all", *flags])
    said = capsys.readouterr()
    assert "dense: 2 of 2 questions to answer" in said.err
    assert said.err.count("dense: 2 of 2") == 1  # the five share it
    assert "left out: the data has no scenes.jsonl" in said.out
    for name in ("layer", "split", "shallow", "merge", "positions", "attention", "lens"):
        assert (tmp_path / name / "table.md").read_text() in said.out
        with Image.open(tmp_path / name / f"{name}.png") as picture:
            assert picture.width > 300
    main(["merge", *flags])
    assert "to answer" not in capsys.readouterr().err
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))  # as if it had been trained on
    with pytest.raises(ValueError, match="weights"):
        main(["merge", *flags])
    rows = read_table(tmp_path / "merge" / "table.csv")
    assert [(row["series"], row["value"], row["paired"]) for row in rows[:3]] == [
        ("dense", "", ""),
        ("merged", "192", "0.0"),
        ("merged", "128", "0.0"),
    ]
    for name in ("attention", "lens"):  # one picture: no interval
        assert all(
            row[column] == ""
            for row in read_table(tmp_path / name / "table.csv")
            for column in row
            if column.endswith((" low", " high"))
        )


@pytest.fixture(scope="module")
def drawn(checkpoint, rough_figures, tmp_path_factory):
    """Two drawn pictures with what is asked about them; the folder that `attention` and `lens` wrote into."""
    folder = tmp_path_factory.mktemp("drawn")
    write_benchmark(folder / "data", "test", 2)
    for name in ("attention", "lens"):
        main([name, "--model-path", str(checkpoint), "--data", str(folder / "data"), "--output", str(folder)])
    questions = read_questions(folder / "data" / "questions.jsonl")
    return Setting(*load_checked(str(checkpoint)), checkpoint, folder / "data", questions, 64, 8, folder)


def test_attention_knows_what_a_drawn_benchmark_shows(drawn):
    rows = read_table(drawn.output / "attention" / "table.csv")
    assert [(row["part"], row["layer"]) for row in rows] == [
        (part, str(layer)) for part in ("tower block", "decoder layer") for layer in range(8)
    ]
    assert all(0 <= float(row["AUC things"]) <= 1 for row in rows[:8])
    assert all(0 < float(row["on what is asked %"]) < 100 for row in rows[8:])
    for name in rows[0].keys() - {"part", "layer"}:
        assert {row[name] == "" for row in rows[:8]} != {row[name] == "" for row in rows[8:]}  # the tower's or not


def test_attentions_intervals_are_over_pictures_and_clustered_questions(drawn):
    rows = read_table(drawn.output / "attention" / "table.csv")
    prepare, images = preparation(drawn), [question["image"] for question in drawn.questions]
    prompts = list(map(prepare, drawn.questions))
    firsts = [prompts[images.index(image)] for image in dict.fromkeys(images)]
    reach = np.array([tower_looks(drawn.model, prompt.pixels)[1][:, 0].tolist() for prompt in firsts])
    reader = Reader(drawn)
    mass = np.array([100 * reader.looks([prompt], 576)[:, 0].double().sum(1).numpy() for prompt in prompts])
    assert (len(reach), len(set(images))) == (2, 2)
    assert len(mass) > 2
    for layer in range(8):
        # Pictures are alike, so theirs is the plain standard error.
        width = QUANTILE * reach[:, layer].std(ddof=1) / math.sqrt(2)
        expected = reach[:, layer].mean() + np.array([0, -width, width])
        assert interval_in(rows[layer], DISTANCE) == pytest.approx(expected, rel=1e-6)
        width = half_width_of(mass[:, layer], images)
        expected = mass[:, layer].mean() + np.array([0, -width, width])
        assert interval_in(rows[8 + layer], MASS) == pytest.approx(expected, rel=1e-5)


def test_the_lens_intervals_are_clustered_by_picture(drawn):
    rows = read_table(drawn.output / "lens" / "table.csv")
    kinds = np.array([question["category"] for question in drawn.questions])
    images = np.array([question["image"] for question in drawn.questions])
    agree, right = settle(drawn, kinds.tolist())
    assert len(set(kinds)) > 1
    for layer, row in enumerate(rows):
        for name in [ALL, *dict.fromkeys(kinds.tolist())]:
            chosen = (kinds == name) | (name == ALL)
            for what, flags in (("as last", agree), ("right", right)):
                values = 100 * flags[layer, chosen]
                width = half_width_of(values, images[chosen])
                expected = (values.mean(), values.mean() - width, values.mean() + width)
                assert interval_in(row, f"{name}: {what}") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["layer", "--model-path", "nowhere"], "expected a checkpoint folder"),
        (["layer", "--data", "nowhere"], "question file"),
        (["split", "--tokens", "63"], "expected an even count"),
        (["layer", "--tokens", "500"], "a view of this model has 576"),
        (["lens", "--number", "2"], "--number for drawn scenes only"),
    ],
)
def test_what_is_wrong_is_said(checkpoint, own, tmp_path, flags, said):
    defaults = ["--model-path", str(checkpoint), "--data", str(own), "--output", str(tmp_path)]
    with pytest.raises((OSError, ValueError), match=said):
        main([flags[0], *defaults, *flags[1:]])


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "playground.study", "lens", "--model-path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
