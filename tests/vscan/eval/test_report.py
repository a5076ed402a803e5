"""The paper's table: scores of several runs beside the published ones, with what they retain and what they cost."""

import csv
import json

import pytest

from vscan.eval.__main__ import main
from vscan.eval.report import beside, csv_text, markdown
from vscan.eval.runs import comparable, cost, read_published, read_runs, retained


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def add_run(
    out, benchmark, name, value, stages, parts=None, reduction=None, missing=0, questions=10, layers=32, seconds=1.5
):
    """A run of two rows with an image and one without."""
    folder = out / benchmark / name
    model = out.parent / "model"
    write(model / "config.json", {"num_hidden_layers": layers})
    scores = {"benchmark": benchmark, "value": value, "parts": parts or {}, "num_questions": questions}
    write(folder / "scores.json", {**scores, "num_missing": missing, "num_unparsed": 0})
    write(folder / "answers.jsonl.run.json", {"model_path": str(model), "reduction": reduction})
    stats = [{"row": row, "visual_tokens": 576, "stages": stages, "seconds": seconds} for row in range(2)]
    stats.append({"row": 2, "visual_tokens": 0, "stages": [[0, 0]], "seconds": 0.5})
    write(folder / "answers.jsonl.stats.jsonl", "".join(json.dumps(row) + "\n" for row in stats))
    write(folder / "answers.jsonl", "{}\n")


@pytest.fixture
def out(tmp_path):
    family = tmp_path / "out" / "llava1_5"
    mme = {"perception": 1500.0, "cognition": 350.0, "total": 1850.0}
    less = {"perception": 1400.0, "cognition": 265.0, "total": 1665.0}
    vscan = {"method": "vscan", "visual_tokens": 96}
    add_run(family, "gqa", "dense", 62.0, [[0, 576]])
    add_run(family, "gqa", "vscan-11.1", 58.9, [[0, 96], [16, 32]], reduction=vscan)
    add_run(family, "mme", "dense", 1500.0, [[0, 576]], parts=mme)
    add_run(family, "mme", "vscan-11.1", 1400.0, [[0, 96], [16, 32]], parts=less, reduction=vscan, missing=2)
    add_run(family, "vizwiz", "dense", None, [[0, 576]])
    add_run(family, "pope", "vscan-11.1", 80.0, [[0, 96], [16, 32]], reduction=vscan)
    return tmp_path / "out"


def test_runs_are_read_with_what_they_cost(out):
    runs, notes = read_runs([out])
    dense, vscan = sorted(runs, key=lambda run: run.name)
    assert (dense.family, dense.method) == ("llava1_5", "dense")
    spent = cost(dense, ["gqa", "mme", "vizwiz"])
    assert (spent.tokens, spent.stages, spent.seconds) == (576, [[0, 576]], pytest.approx(3.5 / 3))
    spent = cost(vscan, ["gqa"])
    assert (vscan.method, spent.tokens, spent.stages) == ("vscan", 64, [[0, 96], [16, 32]])
    assert vscan.counts["mme"] == (10, 2, 0)
    assert notes == ["llava1_5/dense, vizwiz: only a server or a judge can score it"]


def test_retained_is_of_the_dense_run(out):
    runs, _ = read_runs([out])
    kept = retained(next(run for run in runs if run.name == "vscan-11.1"), runs)
    assert kept == {
        ("gqa", ""): pytest.approx(95),
        ("mme", "perception"): pytest.approx(100 * 1400 / 1500),
        ("mme", "total"): pytest.approx(90),
    }  # POPE was not run dense


def test_dense_is_looked_for_by_checkpoint_and_by_number_of_questions(out):
    add_run(out / "v1_5", "gqa", "vispruner-64-0.5", 31.0, [[0, 64]], reduction={"method": "vispruner"})
    add_run(
        out / "v1_5", "mme", "vispruner-64-0.5", 1000.0, [[0, 64]], parts={"total": 925.0, "perception": 1}, questions=3
    )
    (out / "v1_5" / "mme" / "vispruner-64-0.5" / "answers.jsonl.run.json").write_text(
        (out / "llava1_5" / "mme" / "dense" / "answers.jsonl.run.json")
        .read_text()
        .replace("null", '{"method": "vispruner"}')
    )
    runs, _ = read_runs([out])
    run = next(run for run in runs if run.family == "v1_5")
    assert retained(run, runs) == {("gqa", ""): pytest.approx(50)}
    for file in (out / "v1_5" / "gqa").rglob("*.run.json"):
        file.write_text(file.read_text().replace("/model", "/another"))
    runs, _ = read_runs([out])
    assert retained(next(run for run in runs if run.family == "v1_5"), runs) == {}


def test_the_table_stands_beside_the_papers(out, capsys):
    main(["report", str(out / "llava1_5")])
    printed = capsys.readouterr().out
    assert printed == (out / "llava1_5" / "report.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "",
        "GQA",
        "POPE",
        "MME-P",
        "MME",
        "retained %",
        "tokens",
        "from layer: tokens",
        "seconds per question",
        "source",
    ]
    assert lines[2] == ["dense", "62.0", "-", "1500", "1850", "100.0 (2)", "576 (3)", "0: 576", "1.167 (3)", "here"]
    ours = ["vscan-11.1", "58.9", "80.0", "1400*", "1665*", "92.5 (2)", "64 (2)", "0: 96, 16: 32", "1.167 (2)", "here"]
    assert lines[3] == ours
    paper = next(line for line in lines if line[0] == "VScan 64" and "Table 2" in line[-1])
    # (58.3 / 61.9 + 85.0 / 85.9 + 1698 / 1862) / 3
    assert paper == ["VScan 64", "58.3", "85.0", "-", "1698", "94.8", "64", "-", "-", "VScan (TMLR 01/2026), Table 2"]
    # Neither methods that were not run, nor papers without a row of those that were.
    assert [line[0] for line in lines[4:]] == ["dense", "VScan 192", "VScan 128", "VScan 64"]
    assert "* questions without an answer, which count as wrong: vscan-11.1 mme 2." in printed
    assert "- llava1_5/dense, vizwiz: only a server or a judge can score it" in printed
    assert (out / "llava1_5" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_what_runs_cost_is_compared_on_the_benchmarks_that_the_dense_run_answered_too(out):
    """POPE, which was not run dense, has other pictures and longer answers; the vispruner run has nothing in common."""
    pruned = {"method": "vscan", "visual_tokens": 96}
    add_run(out / "llava1_5", "pope", "vscan-11.1", 80.0, [[0, 300], [16, 100]], reduction=pruned, seconds=60)
    add_run(out / "llava1_5", "pope", "vispruner-11.1", 80.0, [[0, 64]], reduction={"method": "vispruner"}, seconds=3.5)
    runs, _ = read_runs([out])
    names = {run.name: comparable(run, runs) for run in runs}
    assert names == {"dense": ["gqa", "mme", "vizwiz"], "vscan-11.1": ["gqa", "mme"], "vispruner-11.1": ["pope"]}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(runs).splitlines() if "|" in line]
    costs = {line[0]: line[-4:-1] for line in lines if line[-1] == "here"}
    assert costs == {
        "dense": ["576 (3)", "0: 576", "1.167 (3)"],
        "vscan-11.1": ["64 (2)", "0: 96, 16: 32", "1.167 (2)"],
        "vispruner-11.1": ["64 (1)", "0: 64", "2.500 (1)"],
    }
    rows = list(csv.DictReader(csv_text(runs).splitlines()))
    pope = {row["run"]: (row["tokens"], row["seconds_per_question"]) for row in rows if row["benchmark"] == "pope"}
    assert (pope["vscan-11.1"], pope["vispruner-11.1"]) == (("200.0", "40.166667"), ("64.0", "2.5"))


def test_the_dense_run_may_lie_in_the_folder_of_another_family(out, capsys):
    add_run(out / "v1_5", "gqa", "vispruner-64-0.75", 31.0, [[0, 64]], reduction={"method": "vispruner"})
    main(["report", str(out / "v1_5"), str(out / "llava1_5")])
    printed = capsys.readouterr().out
    assert printed == (out / "v1_5" / "report.md").read_text()
    assert printed.index("## v1_5") < printed.index("## llava1_5")  # in the order of the folders
    line = next(line for line in printed.splitlines() if line.startswith("| vispruner-64-0.75"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["31.0", "50.0"]


def test_the_csv_has_a_line_a_score(out, tmp_path):
    main(["report", str(out), "--output", str(tmp_path / "tables")])
    with open(tmp_path / "tables" / "report.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (row,) = (row for row in rows if row["run"] == "vscan-11.1" and row["part"] == "total")
    assert row == {
        "family": "llava1_5",
        "run": "vscan-11.1",
        "method": "vscan",
        "benchmark": "mme",
        "part": "total",
        "value": "1665.0",
        "retained": "90.0",
        "tokens": "64.0",
        "stages": "0: 96, 16: 32",
        "seconds_per_question": "1.166667",
        "questions": "10",
        "missing": "2",
        "unparsed": "0",
        "source": "here",
    }
    (row,) = (row for row in rows if row["run"] == "VScan 192" and row["benchmark"] == "gqa")
    assert (row["value"], row["source"]) == ("60.6", "VScan (TMLR 01/2026), Table 2")


def test_without_a_config_the_average_over_layers_is_not_guessed(out):
    (out / "model" / "config.json").unlink()
    runs, _ = read_runs([out])
    assert {run.name: cost(run, run.measured).tokens for run in runs} == {"dense": 576, "vscan-11.1": None}
    assert "| -      |" in markdown(runs) or " - |" in markdown(runs)


@pytest.mark.parametrize("method", [None, {"method": "random"}])
def test_where_papers_have_no_row_of_a_method_their_dense_one_stands_beside(tmp_path, method):
    add_run(tmp_path / "out" / "v1_5", "gqa", "one", 62.0, [[0, 576]], reduction=method)
    runs, _ = read_runs([tmp_path / "out"])
    (row,) = beside(runs, "v1_5", [("gqa", "")])
    assert (row.name, row.source, row.scores["gqa", ""]) == ("dense", "VScan (TMLR 01/2026), Table 2", 61.9)
    assert beside(runs, "another", [("gqa", "")]) == []


def test_videos_have_a_score_beside_their_accuracy(tmp_path):
    family = tmp_path / "out" / "video_llava"
    parts = {"score (0 to 5)": 3.41, "judged": 10}
    add_run(family, "tgif", "dense", 47.5, [[0, 2048]], parts=parts)
    add_run(family, "msvd", "dense", 70.0, [[0, 2048]], parts=parts)
    add_run(
        family,
        "tgif",
        "vscan-25",
        38.0,
        [[0, 512]],
        parts={**parts, "score (0 to 5)": 1.0},
        reduction={"method": "vscan"},
    )
    runs, _ = read_runs([tmp_path / "out"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(runs).splitlines() if "|" in line]
    assert lines[0][1:6] == ["TGIF-QA", "TGIF-QA (0-5)", "MSVD-QA", "MSVD-QA (0-5)", "retained %"]
    assert lines[3][:6] == ["vscan-25", "38.0", "1.00", "-", "-", "80.0 (1)"]
    assert lines[4][:6] == ["dense", "47.0", "3.4", "70.5", "3.92", "100.0"]


def test_without_a_judge_proxies_stand_beside_what_papers_print(tmp_path):
    family = tmp_path / "out" / "video_llava"
    add_run(family, "msvd", "dense", None, [[0, 2056]])
    file = family / "msvd" / "dense" / "scores.json"
    scores = json.loads(file.read_text())
    write(file, {**scores, "proxies": {"exact match (%)": 12.5, "contains the answer (%)": 25.0}})
    runs, notes = read_runs([tmp_path / "out"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(runs).splitlines() if "|" in line]
    proxies = ["MSVD-QA proxy: exact match", "MSVD-QA proxy: contains the answer"]
    assert lines[0][:6] == ["", "MSVD-QA", "MSVD-QA (0-5)", *proxies, "retained %"]
    assert lines[2][:6] == ["dense", "-", "-", "12.5", "25.0", "-"]
    assert lines[3][:6] == ["dense", "70.5", "3.92", "-", "-", "100.0"]
    assert notes == ["video_llava/dense, msvd: only a server or a judge can score it"]
    assert ",msvd,contains the answer (%),25.0," in csv_text(runs)


def test_runs_that_are_none_are_said(out, tmp_path):
    write(out / "qwen2_5_vl" / "refcoco" / "dense" / "scores.json", {"refcoco_val": {"accuracy": 1}, "all": {}})
    assert any("not of vscan.eval; score these answers again" in note for note in read_runs([out])[1])
    with pytest.raises(FileNotFoundError, match=r"expected <family>/<benchmark>/<method-budget>/scores.json"):
        read_runs([tmp_path / "model"])
    other = tmp_path / "again" / "llava1_5"
    add_run(other, "gqa", "dense", 1.0, [[0, 576]])
    with pytest.raises(ValueError, match="expected one run of gqa for llava1_5/dense, got a second one"):
        read_runs([out, tmp_path / "again"])


def test_published_rows_are_complete_and_make_the_printed_averages():
    """The papers print their averages over nine and five benchmarks: a typing error would show."""
    tables = {
        ("LLaVA-1.5-7B", "Table 2"): {"VScan 192": 98.95, "VScan 128": 98.83, "VScan 64": 96.75, "ToMe 64": 70.1},
        ("LLaVA-NeXT-7B", "Table 3"): {"VScan 320": 95.37, "HiRED 320": 93.9, "FastV 320": 88.7},
        ("LLaVA-1.5-7B", "llava-1.5-7b.png"): {"VisPruner 128": 99.6, "VisPruner 64": 96.6, "VisPruner 32": 91.5},
        ("LLaVA-NeXT-7B", "llava-next-7b.png"): {"VisPruner 640": 98.6, "VisPruner 160": 86.7, "FastV 320": 87.7},
    }
    for (model, table), printed in tables.items():
        rows = [run for run in read_published(model) if run.source.endswith(table)]
        for name, average in printed.items():
            (run,) = (run for run in rows if run.name == name)
            kept = retained(run, rows)
            assert len(kept) == len(run.scores)
            assert sum(kept.values()) / len(kept) == pytest.approx(average, abs=0.06), (table, name)
    assert len(read_published("Qwen2.5-VL-7B")) > 20
    assert read_published(None) == []
