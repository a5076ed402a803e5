"""The table of `benchmarks.checks`: what is left out is every check, both ways do the same steps, ratios are right."""

import re
import sys

import pytest
import torch
from helpers import tiny_llava

import vscan
from benchmarks import checks_parts
from benchmarks.checks import main
from benchmarks.checks_parts import CHECKS, PLACES, TINY, Case, idle, measure, replaced, report, time_checks
from llava.model.builder import load_model
from vscan import decoder
from vscan.checks import guards
from vscan.compat import LibraryChanged, held


@pytest.fixture(scope="module")
def models():
    return {"original": load_model(TINY, device="cpu", dtype="float32"), "hugging_face": tiny_llava(vision_layers=8)}


def test_checks_are_called_from_these_modules_alone():
    checks = {vars(guards)[name] for name in CHECKS}
    loaded = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("vscan", "llava", "qwen")]
    users = {module for module in loaded if checks & {value for value in vars(module).values() if callable(value)}}
    assert users - {guards} <= set(PLACES)
    assert len(checks) >= 5


def test_a_check_that_is_left_out_finds_nothing_and_comes_back(models):
    cache = Case("", models["hugging_face"]).step()
    with replaced(idle):
        assert decoder.check_step(cache, 0, 1) is None
    with pytest.raises(LibraryChanged, match="expected 1 columns in the cache of layer 0 after 1 more, got 207"):
        decoder.check_step(cache, 0, 1)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("family", ["original", "hugging_face"])
@torch.inference_mode()
def test_a_step_is_a_prompt_in_two_stages_and_then_a_token(models, family, left_out):
    case, calls = Case(family, models[family]), []

    def note(name, check):
        return lambda *given: calls.append(name) or (idle(name, check) if left_out else check)(*given)

    with vscan.reduce(case.model, visual_tokens=96, layers={case.middle: 32}), replaced(note):
        cache = case.step()
        assert [held(cache, layer)[0] for layer in (0, case.middle)] == [96 + 63, 32 + 63]
        assert sorted(calls) == ["check_finite", "check_handed_out", "check_prefill"]
        calls.clear()
        case.step(cache)
        assert [held(cache, layer)[0] for layer in (0, case.middle)] == [96 + 64, 32 + 64]
        assert calls == ["check_step"]


def test_checks_are_timed_alone_by_what_one_call_takes(models, monkeypatch):
    monkeypatch.setattr(checks_parts, "REPEATS", 4)
    ticks = iter(range(100))
    case = Case("tiny", models["hugging_face"])
    with torch.inference_mode(), vscan.reduce(case.model, visual_tokens=96, layers={case.middle: 32}):
        assert time_checks(case, lambda: next(ticks)) == [3 / 4, 1 / 4]  # a tick a check


def test_both_ways_take_the_same_rounds(models, monkeypatch):
    monkeypatch.setattr(checks_parts, "REPEATS", 1)
    seconds = measure(Case("tiny", models["hugging_face"]), rounds=2, num_new=1)
    assert {which: len(pairs) for which, pairs in seconds.items()} == {"with": 2, "without": 2, "checks": 2}
    assert all(taken > 0 for which in ("with", "without") for pair in seconds[which] for taken in pair)


def test_the_table_holds_medians_of_ratios_of_one_round():
    seconds = {"with": [(2.0, 0.1), (3.0, 0.1), (9.0, 0.1)], "without": [(2.0, 0.1), (2.0, 0.2), (3.0, 0.1)]}
    seconds["checks"] = [(0.02, 0.0001), (0.02, 0.0001), (0.03, 0.0001)]
    lines = report({"tiny": seconds}).splitlines()
    head, _, prefill, decode = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert head == ["model", "step", "with checks", "with / without", "checks alone", "alone / without"]
    assert prefill == ["tiny", "prefill", "3 ±1.8 s", "1.5 ±0.5", "20 ±2.5 ms", "1 ±0 %"]
    assert decode == ["tiny", "decode per token", "100 ±0 ms", "1 ±0.12", "0.1 ±0 ms", "0.1 ±0.013 %"]


def test_the_command_prints_the_table_and_the_self_test(models, monkeypatch, capsys):
    monkeypatch.setattr(checks_parts, "cases", lambda dtype: [Case("tiny", models["hugging_face"])])
    main(["--rounds", "1", "--new-tokens", "1"])
    shown = capsys.readouterr().out
    assert shown.startswith("CPU time of one thread, 1 rounds, 1 tokens a round, wide model in float32, torch ")
    assert [line.split("|")[2].strip() for line in shown.splitlines() if line[:1] == "|"][2:] == [
        "prefill",
        "decode per token",
    ]
    assert re.search(r"\nself-test of the tiny: \S+ ms the first time, \S+ ms again\n$", shown)
