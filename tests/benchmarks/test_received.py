"""The tables of `benchmarks.received`: each part computes what its name says, sums and ratios are right."""

import pytest
import torch

from benchmarks import received_parts
from benchmarks.received import main
from benchmarks.received_parts import (
    GLOBAL,
    LOCAL,
    STAGE,
    WINDOWED,
    blocks_of,
    build,
    calls_of,
    measure,
    reduced,
    report,
)
from vscan.models import qwen2_5_vl
from vscan.tools.bench_qwen import QwenBench

MIB = 2**20


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(received_parts, "VISION", {"hidden_size": 32, "intermediate_size": 16, "num_heads": 2})
    return QwenBench(build(torch.float32, torch.device("cpu")), [(1, 12, 16)], 1)


def test_one_windowed_and_two_full_blocks_stand_for_the_tower(bench):
    with torch.inference_mode(), reduced(bench.model) as reduction:
        assert (reduction.method.local_layer, reduction.method.global_layer) == (LOCAL, -1)
        blocks, (_, calls) = blocks_of(bench), bench.record((WINDOWED, LOCAL, GLOBAL))
    with torch.inference_mode():
        assert [blocks[name]().shape for name in blocks] == [(192, 32), (192, 32), (48, 3584)]
    segments = [calls[block][0]["cu_seqlens"].diff().tolist() for block in (WINDOWED, LOCAL, GLOBAL)]
    assert segments == [[64, 64, 32, 32], [192], [192]]


def test_every_way_gives_the_scores_that_the_reduction_ranks_by(bench, monkeypatch):
    scores, original = [], qwen2_5_vl.attention_received
    monkeypatch.setattr(qwen2_5_vl, "attention_received", lambda *given: scores.append(original(*given)) or scores[-1])
    with torch.inference_mode(), reduced(bench.model) as reduction:
        calls, select = calls_of(bench), bench.selection(reduction)
        select()
        assert len(scores) == 2
        torch.testing.assert_close(calls["attention received"](), scores[0])
        torch.testing.assert_close(calls["all heads at once"](), scores[0])
        # SDPA of values that are columns of the identity gives the columns themselves.
        attend = calls["SDPA"]
        query, key, _ = attend.args
        value = torch.eye(192).expand(1, 2, -1, -1)
        columns = attend.func(query, key, value, **attend.keywords)
        torch.testing.assert_close(columns.mean(dim=2).sum(dim=(0, 1)), scores[0])


def test_the_tower_is_worked_out_from_its_parts_round_by_round(bench):
    seconds, peaks = measure(bench, 2)
    assert {len(values) for values in seconds.values()} == {2}
    for i in range(2):
        windowed, full, outside = (seconds[name][i] for name in list(seconds)[:3])
        assert seconds["tower"][i] == pytest.approx(28 * windowed + 4 * full + outside)
    assert list(peaks) == ["reduced tower", "dense tower", "attention received", "all heads at once", "SDPA"]
    assert min(peaks.values()) > 0


def test_the_tables_hold_medians_of_ratios_of_one_round():
    names = ["windowed block", "full block", "outside the blocks", STAGE, "attention received", "SDPA", "tower"]
    rounds = zip([1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [0.5, 1.0], [0.2, 0.4], [0.4, 0.8], [50.0, 100.0], strict=True)
    seconds = dict(zip(names, map(list, zip(*rounds, strict=True)), strict=True))
    peaks = {"reduced tower": 3 * MIB, "dense tower": 4 * MIB, "attention received": MIB, "SDPA": 2 * MIB}
    lines = [line for line in report({1024: (seconds, peaks)}).splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["patches", *names]
    assert cells[2][0::4] == ["1024", "750 ±1.2e+02 ms"]
    assert cells[3] == [
        "patches",
        f"{STAGE}/tower",
        "2 x attention received/tower",
        "2 x SDPA/tower",
        "attention received/SDPA",
    ]
    assert cells[5] == ["1024", "1 ±0 %", "0.8 ±0 %", "1.6 ±0 %", "0.5 ±0"]
    assert cells[8][1:] == ["4.0 MiB", "3.0 MiB", "1.0 MiB", "2.0 MiB", "0.750", "3072 B"]


def test_the_command_prints_the_tables(bench, capsys):
    main(["--image-size", "112x112", "224x112", "--rounds", "1", "--threads", "1"])
    shown = capsys.readouterr().out
    assert "CPU time on cpu, 1 CPU threads, float32, 1 rounds" in shown
    assert "tower = 28 x windowed block + 4 x full block + outside the blocks, worked out" in shown
    assert [line.split()[1] for line in shown.splitlines() if line[:1] == "|"][2::4] == ["64", "64", "64"]
