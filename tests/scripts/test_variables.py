"""What the environment changes in a script, and what a script says when something is missing."""

import json
import sys
from pathlib import Path

import pytest
from script_helpers import BENCHMARKS, FAMILIES, OFFICIAL, bash, dry, flag, script_of


@pytest.mark.parametrize(
    ("family", "variables", "run", "expected"),
    [
        (
            "llava1_5",
            {"BUDGET": "22.2"},
            "vscan-22.2",
            "--layer_list [16] --image_token_list [64] --visual_token_num 192",
        ),
        (
            "llava1_6",
            {"BUDGET": "33.3"},
            "vscan-33.3",
            "--layer_list [16] --image_token_list [96] --visual_token_num 288",
        ),
        ("llava1_5", {"BUDGET": "dense"}, "dense", "--temperature 0 --conv-mode vicuna_v1"),
        ("llava1_5", {"METHOD": "fastervlm"}, "fastervlm-11.1", "--method fastervlm --visual_token_num 64"),
        (
            "llava1_5",
            {"METHOD": "random", "BUDGET": "33.3", "MODEL": "my-13b"},
            "my-13b-random-33.3",
            "--method random --visual_token_num 192",
        ),
        (
            "qwen2_5_vl",
            {"BUDGET": "22.2"},
            "vscan-22.2",
            "--layer-list [14] --image-token-ratio-list [0.333] --image-token-ratio 0.333",
        ),
        (
            "qwen2_5_vl",
            {"BUDGET": "33.3"},
            "vscan-33.3",
            "--layer-list [14] --image-token-ratio-list [0.333] --image-token-ratio 0.5",
        ),
        (
            "qwen2_5_vl",
            {"BUDGET": "dense"},
            "dense",
            "--layer-list [] --image-token-ratio-list [] --image-token-ratio 1.0",
        ),
        (
            "qwen2_5_vl",
            {"METHOD": "downsample"},
            "downsample-11.1",
            "--method downsample --layer-list [] --image-token-ratio-list [] --image-token-ratio 0.111",
        ),
    ],
)
def test_method_and_budget_come_from_the_environment_and_are_in_the_path(project, family, variables, run, expected):
    answer, score = dry(project, family, "pope", **variables)
    assert answer[-len(expected.split()) :] == expected.split()
    assert flag(score, "--output") == f"playground/out/eval/{family}/pope/{run}/scores.json"
    assert flag(answer, "--model-path").startswith("../models/" + variables.get("MODEL", ""))


def test_places_come_from_the_environment(project, tmp_path):
    answer, score = dry(
        project, "llava1_5", "pope", DATA=tmp_path / "my data", MODELS="/models", OUT=tmp_path / "o'out"
    )
    assert flag(answer, "--model-path") == "/models/llava-v1.5-7b"
    assert flag(answer, "--image-folder") == f"{tmp_path}/my data/pope/val2014"
    assert flag(score, "--output") == f"{tmp_path}/o'out/llava1_5/pope/vscan-11.1/scores.json"


def test_the_projects_own_interpreter_comes_first(project):
    assert dry(project, "llava1_5", "pope", PYTHON="")[0][0] == "python"
    own = project / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert dry(project, "llava1_5", "pope", PYTHON="")[0][0] == ".venv/bin/python"
    own.unlink()


@pytest.mark.parametrize(
    ("devices", "number"), [("0,1,2,3", 4), ("2,3", 2), ("1", 1), ("", 1), ("0,", 1), (",", 1), ("0,,MIG-2,", 2)]
)
def test_visible_gpus_share_the_questions(project, devices, number):
    answer, score = dry(project, "llava1_5", "gqa", CUDA_VISIBLE_DEVICES=devices)
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    assert answer[1 : len(several) + 1] == several if number > 1 else answer[1] == "-m"
    assert answer[answer.index("llava.eval.model_vqa_loader") - 1] == "-m"
    assert score[:3] == ["python", "-m", "vscan.eval"]


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("gqa", ["gqa/images", "gqa/data/images"], "gqa/images"),
        ("gqa", ["gqa/data/images"], "gqa/data/images"),
        ("mme", ["MME/MME_Benchmark_release_version"], "MME/MME_Benchmark_release_version"),
        (
            "mme",
            ["MME/MME_Benchmark_release_version/MME_Benchmark"],
            "MME/MME_Benchmark_release_version/MME_Benchmark",
        ),
        ("seed", ["seed_bench"], "seed_bench"),
    ],
)
def test_images_are_found_in_their_known_places(project, tmp_path, name, there, expected):
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
    assert flag(dry(project, "llava1_5", name, DATA=tmp_path)[0], "--image-folder") == f"{tmp_path}/{expected}"


def test_mmbench_cn_may_lie_beside_mmbench(project, tmp_path):
    (tmp_path / "mmbench").mkdir()
    (tmp_path / "mmbench" / "mmbench_dev_cn_20231003.tsv").touch()
    answer, score = dry(project, "llava1_5", "mmbench_cn", DATA=tmp_path)
    assert flag(answer, "--question-file") == f"{tmp_path}/mmbench/mmbench_dev_cn_20231003.tsv"
    assert flag(score, "--data") == f"{tmp_path}/mmbench"


def test_splits_of_refcoco_may_lie_in_vlm_r1s_folder(project, tmp_path):
    (tmp_path / "refcoco" / "rec_jsons_processed").mkdir(parents=True)
    (tmp_path / "refcoco" / "rec_jsons_processed" / "refcoco_val.json").touch()
    (tmp_path / "refcoco" / "coco").mkdir()
    answer, score = dry(project, "qwen2_5_vl", "refcoco", DATA=tmp_path)
    assert flag(answer, "--data-root") == f"{tmp_path}/refcoco/rec_jsons_processed"
    assert flag(answer, "--image-root") == f"{tmp_path}/refcoco/coco"
    assert flag(score, "--data") == f"{tmp_path}/refcoco"
    assert flag(score, "--answers") == flag(answer, "--output-dir")


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_question_file_is_made_of_the_official_one_unless_it_is_there(project, tmp_path, name):
    folder = tmp_path / name
    questions = folder / f"llava_{name}_val.jsonl"
    folder.mkdir()
    (folder / OFFICIAL[name]).touch()
    make, copy, answer, score = dry(project, "llava1_5", name, DATA=tmp_path, LIMIT=2)
    assert make == ["python", "scripts/convert_document_questions.py", name, "--data", str(folder)]
    assert (flag(copy, "--data"), flag(copy, "--question-file")) == (str(folder), questions.name)
    (folder / OFFICIAL[name]).rename(folder / OFFICIAL[name].replace("_withQT", ""))
    assert [words[1] for words in dry(project, "llava1_5", name, DATA=tmp_path)] == [make[1], "-m", "-m"]
    questions.touch()
    answer, score = dry(project, "llava1_5", name, DATA=tmp_path)
    assert flag(answer, "--question-file") == str(questions)
    assert flag(score, "--data") == str(folder)


def test_a_question_file_that_nothing_is_there_to_make_of_is_named_before_anything_starts(project, tmp_path):
    (tmp_path / "llava-v1.5-7b").mkdir()
    places = [f"{tmp_path}/docvqa/{name}" for name in ("llava_docvqa_val.jsonl", OFFICIAL["docvqa"], "val_v1.0.json")]
    command = (script_of("v1_5", "docvqa"), *FAMILIES["v1_5"])
    variables = {"DATA": tmp_path, "MODELS": tmp_path, "PYTHON": "false"}
    (tmp_path / "docvqa").mkdir()
    done = bash(project, *command, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: questions: expected {' or '.join(places)}, found none" in done.stderr
    assert f"missing: questions: expected {' or '.join(places)}" in bash(project, *command, DRY=1, **variables).stderr
    Path(places[1]).touch()
    done = bash(project, *command, **variables)
    assert (done.returncode, done.stdout) == (2, "")  # the question file is not made where the pictures are missing
    assert "error: images: expected" in done.stderr


def test_a_limit_asks_a_copy_with_fewer_rows_in_a_place_of_its_own(project):
    copy, answer, score = dry(project, "llava1_5", "pope", LIMIT=100)
    run = "playground/out/eval/llava1_5/pope/vscan-11.1-first100"
    assert copy[:3] == ["python", "scripts/first_rows.py", "pope"]
    assert (flag(copy, "--rows"), flag(copy, "--output")) == ("100", f"{run}/data")
    assert flag(answer, "--question-file") == f"{run}/data/llava_pope_test.jsonl"
    assert flag(answer, "--image-folder") == "../data/eval/pope/val2014"
    assert flag(score, "--data") == f"{run}/data"
    assert flag(score, "--output") == f"{run}/scores.json"


@pytest.mark.parametrize(
    ("family", "arguments", "variables", "message"),
    [
        ("llava1_5", [], {"MODELS": "/none"}, "model: expected a checkpoint folder at /none/llava-v1.5-7b, found none"),
        ("llava1_5", [], {"BUDGET": "50"}, "BUDGET: expected 11.1, 22.2, 33.3 or dense, got '50'"),
        ("llava1_5", [], {"LIMIT": "many"}, "LIMIT: expected a number of questions of at least 1, got 'many'"),
        ("llava1_5", [], {"LIMIT": "0"}, "LIMIT: expected a number of questions of at least 1, got '0'"),
        ("llava1_5", [], {"METHOD": "a/../../b"}, "METHOD: expected one of vscan, "),
        ("llava1_5", [], {"METHOD": "a/../../b", "BUDGET": "dense"}, "got 'a/../../b'"),
        ("qwen2_5_vl", [], {"BUDGET": "11.1/.."}, "BUDGET: expected 11.1, 22.2, 33.3 or dense, got '11.1/..'"),
        ("llava1_5", [], {"MODEL": "a/b"}, "MODEL: expected the name of a folder in MODELS, got 'a/b'"),
        ("v1_5", ["64", "0.75"], {"MODEL": ".."}, "MODEL: expected the name of a folder in MODELS, got '..'"),
        ("llava1_5", [], {"LAYER": "32"}, "LAYER: expected a decoder layer of 1 to 31, got '32'"),
        ("qwen2_5_vl", [], {"LAYER": "0"}, "LAYER: expected a decoder layer of 1 to 27, got '0'"),
        ("llava1_5", [], {"LAYER": "../8"}, "LAYER: expected a decoder layer of 1 to 31, got '../8'"),
        ("llava1_5", [], {"LAYER": "8", "METHOD": "random"}, "LAYER: expected one with METHOD=vscan alone"),
        ("v1_5", ["abc", "0.75"], {}, "TOKENS: expected a number of tokens of at least 1, got 'abc'"),
        ("v1_5", ["0", "0.75"], {}, "TOKENS: expected a number of tokens of at least 1, got '0'"),
        ("v1_6", ["64", "1.5"], {}, "IMPORTANT_RATIO: expected 0 to 1, such as 0.75, got '1.5'"),
        ("v1_6", ["64", "../1"], {}, "IMPORTANT_RATIO: expected 0 to 1, such as 0.75, got '../1'"),
        ("llava1_5", ["64"], {}, "expected no arguments (METHOD and BUDGET say what is kept), got '64'"),
        ("v1_5", ["64"], {}, "expected TOKENS IMPORTANT_RATIO, such as 64 0.75, got '64'"),
    ],
)
def test_a_wrong_variable_or_argument_is_named(project, family, arguments, variables, message):
    done = bash(project, script_of(family, "gqa"), *arguments, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_data_that_is_missing_is_named_before_anything_starts(project, tmp_path):
    (tmp_path / "llava-v1.5-7b").mkdir()

    def error(status: int = 2) -> str:
        done = bash(project, script_of("llava1_5", "gqa"), DATA=tmp_path, MODELS=tmp_path)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.count("\n") == 1
        return done.stderr

    message = f"error: questions: expected {tmp_path}/gqa/llava_gqa_testdev_balanced.jsonl, found none"
    assert message in error(3)  # not even its folder is there
    (tmp_path / "gqa").mkdir()
    assert message in error()
    (tmp_path / "gqa" / "llava_gqa_testdev_balanced.jsonl").touch()
    assert f"error: images: expected {tmp_path}/gqa/images or {tmp_path}/gqa/data/images, found none" in error()


def test_run_all_runs_every_script_and_ends_with_the_table(project, tmp_path):
    done = bash(project, "scripts/run_all.sh", "v1_5", "64", "0.75", DRY=1, PYTHON="python", OUT=tmp_path)
    lines = done.stdout.splitlines()
    assert [Path(line[3:]).stem for line in lines if line.startswith("== ")] == sorted(BENCHMARKS)
    assert lines[-1] == f"python -m vscan.eval report {tmp_path}/v1_5"
    assert done.returncode == 0
    done = bash(project, "scripts/run_all.sh", "llava1_5", DATA=tmp_path, PYTHON="true")
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: these failed, what they said is above: {' '.join(sorted(BENCHMARKS))}\n")
    for family in ("llava2", "..", ""):
        done = bash(project, "scripts/run_all.sh", family, PYTHON="true")
        expected = (
            f"error: expected a family (llava1_5, llava1_6, qwen2_5_vl, video_llava, v1_5 or v1_6), got '{family}'\n"
        )
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_run_all_names_what_failed_last_though_there_is_no_table(project, tmp_path):
    done = bash(project, "scripts/run_all.sh", "v1_5", "64", "0.75", MODELS=tmp_path / "none", PYTHON="false")
    assert done.returncode == 2
    names = " ".join([*sorted(BENCHMARKS), "report"])
    assert done.stderr.splitlines()[-1] == f"error: these failed, what they said is above: {names}"


def test_run_all_leaves_out_what_has_no_folder_and_says_so_after_the_table(project, tmp_path):
    for folder in ("models/llava-v1.5-7b", "pope/val2014", "gqa"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pope" / "llava_pope_test.jsonl").touch()
    command = ("scripts/run_all.sh", "v1_5", "64", "0.75")
    variables = {"DATA": tmp_path, "MODELS": tmp_path / "models", "OUT": tmp_path / "out", "PYTHON": "true"}
    done = bash(project, *command, **variables)
    rest = sorted({*BENCHMARKS} - {"gqa", "pope"})
    left_out = "left out, as DATA has no folder of these: "
    failed = "error: these failed, what they said is above: gqa"  # half of it is there
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (2, [left_out + " ".join(rest), failed])
    assert done.stdout.splitlines()[-1].startswith("true -m vscan.eval report")
    (tmp_path / "gqa").rmdir()
    done = bash(project, *command, **variables)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, left_out + " ".join(sorted([*rest, "gqa"])))
    done = bash(project, *command, **{**variables, "DATA": tmp_path / "none"})
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "error: nothing was run")


def test_vispruner_is_reported_beside_the_dense_run_of_vscans_scripts(project, tmp_path):
    (tmp_path / "llava1_6").mkdir()
    done = bash(project, "scripts/run_all.sh", "v1_6", "32", "0.5", DRY=1, PYTHON="python", OUT=tmp_path)
    assert done.stdout.splitlines()[-1] == f"python -m vscan.eval report {tmp_path}/v1_6 {tmp_path}/llava1_6"


def test_a_search_path_for_folders_does_not_lead_astray(project, tmp_path):
    (tmp_path / "scripts" / "llava1_5").mkdir(parents=True)
    assert dry(project, "llava1_5", "pope", CDPATH=tmp_path)


def test_an_interpreter_that_fails_ends_the_script(project, tmp_path):
    for folder in ("llava-v1.5-7b", "pope/val2014"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text(json.dumps({}))
    command = (script_of("v1_5", "pope"), *FAMILIES["v1_5"])
    done = bash(project, *command, DATA=tmp_path, MODELS=tmp_path, PYTHON="false")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1  # the score is not asked for
