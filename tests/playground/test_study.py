"""The studies: their cells, every name end to end on the random tiny model, and what is wrong said in one line."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from playground.scenes.files import write_benchmark
from playground.studies.results import mean_half_width
from playground.studies.sweeps import Depths, build, layer_schedule
from playground.study import main
from vscan.config import ReductionConfig
from vscan.eval.table import paired_interval
from vscan.flops import average_tokens, tokens_per_layer

TINY = Depths(num_layers=8, num_vision_layers=6, num_tokens=576, global_layer=4)


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


def reductions(name, tokens=64):
    sweep = build(name, TINY, tokens)
    return {series: [(x, cell.reduction) for x, cell in line] for series, line in sweep.series.items()}, sweep


@given(st.integers(2, 80), st.integers(1, 700), st.data())
def test_layer_budgets_meet_the_average_within_half_a_token(num_layers, average, data):
    layer = data.draw(st.integers(1, num_layers - 1))
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


def test_every_study_runs_on_own_data_and_goes_on_where_it_stopped(checkpoint, own, tmp_path, capsys):
    flags = ["--model-path", str(checkpoint), "--data", str(own), "--output", str(tmp_path), "--batch-size", "2"]
    main(["all", *flags])
    said = capsys.readouterr()
    assert "dense: 2 of 2 questions to answer" in said.err
    assert said.err.count("dense: 2 of 2") == 1  # the five share it
    assert "left out: the data has no scenes.jsonl" in said.out
    for name in ("layer", "split", "shallow", "merge", "positions", "attention", "lens"):
        assert (tmp_path / name / "table.md").read_text() in said.out
        with Image.open(tmp_path / name / f"{name}.png") as picture:
            assert picture.width > 900
    main(["merge", *flags])
    assert "to answer" not in capsys.readouterr().err
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))  # as if it had been trained on
    with pytest.raises(ValueError, match="weights"):
        main(["merge", *flags])
    with open(tmp_path / "merge" / "table.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["series"], row["value"], row["paired"]) for row in rows[:3]] == [
        ("dense", "", ""),
        ("merged", "192", "0.0"),
        ("merged", "128", "0.0"),
    ]


def test_attention_knows_what_a_drawn_benchmark_shows(checkpoint, tmp_path):
    write_benchmark(tmp_path / "data", "test", 1)
    flags = ["--model-path", str(checkpoint), "--data", str(tmp_path / "data"), "--output", str(tmp_path)]
    main(["attention", *flags])
    with open(tmp_path / "attention" / "table.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["part"], row["layer"]) for row in rows] == [
        (part, str(layer)) for part in ("tower block", "decoder layer") for layer in range(8)
    ]
    assert all(0 <= float(row["AUC things"]) <= 1 for row in rows[:8])
    assert all(0 < float(row["on what is asked %"]) < 100 for row in rows[8:])


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
