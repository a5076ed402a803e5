"""The demo makes its model, runs every method, and what it prints is what the files say."""

import json

from playground.demo import RUNS, main


def test_the_demo_compares_all_methods_at_64_tokens_on_average(tmp_path, capsys):
    main(tmp_path / "out", num_pictures=2)
    printed = capsys.readouterr().out
    for name in RUNS:
        stats = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl.stats.jsonl").read_text().splitlines()]
        expected = {"dense": [[0, 576]], "vscan": [[0, 96], [4, 32]]}.get(name, [[0, 64]])
        assert [row["stages"] for row in stats] == [expected, expected]
        assert f"\n{name:<11}" + ", ".join(f"{layer}: {tokens}" for layer, tokens in expected) in printed
    assert "average over the layers 64.0 (11.1%)" in printed
    assert "cache length 100 from layer 0, 36 from layer 4" in printed
