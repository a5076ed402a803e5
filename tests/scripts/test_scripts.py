"""The scripts of all benchmarks: that they are there, and exactly what they would run."""

import shlex
from pathlib import Path

import pytest
from script_helpers import ALL, FAMILIES, OFFICIAL, ROOT, SCRIPTS, bash, dry, flag, script_of


def test_every_script_is_there_and_is_bash(project):
    found = {script.relative_to(SCRIPTS) for script in SCRIPTS.rglob("*.sh")}
    expected = {script_of(*pair).relative_to("scripts") for pair in ALL}
    assert found == {*expected, Path("_common.sh"), Path("run_all.sh")}
    for script in found:
        done = bash(project, "-n", Path("scripts") / script)
        assert (done.returncode, done.stderr) == (0, "")
    assert {len((SCRIPTS / script).read_text().splitlines()) for script in expected} <= set(range(6, 11))


@pytest.fixture(scope="module")
def printed(project):
    """The commands of a dry run of all scripts of a family, as words, by the family and the script's name.

    What the last one would run, the table, has no name.
    """
    commands = {}
    for family, arguments in FAMILIES.items():
        done = bash(project, "scripts/run_all.sh", family, *arguments, DRY=1, PYTHON="python")
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("== "):
                lines = commands[family, Path(line[3:]).stem] = []
            else:
                lines.append(shlex.split(line))
        commands[family, ""] = [lines.pop()]
    return commands


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_dry_run_prints_the_question_and_the_score(printed, family, name):
    *before, answer, score = printed[family, name]
    package = "qwen" if family == "qwen2_5_vl" else "llava"
    assert answer[:2] == ["python", "-m"]
    assert answer[2].startswith(f"{package}.eval.")
    assert (ROOT / Path(*answer[2].split("."))).with_suffix(".py").is_file()
    assert flag(answer, "--temperature") == "0"
    assert score[:3] == ["python", "-m", "vscan.eval"]
    run = Path(flag(score, "--output")).parent
    assert run.parts[:3] == ("playground", "out", "eval")
    assert run.parts[3:5] == (family, score[3])
    data = "playground/data/eval" if family.startswith("v1") else "../data/eval"
    assert flag(score, "--data").startswith(f"{data}/")
    if family == "video_llava":
        for name_of_flag in ("--truth-file", "--video-folder"):
            assert flag(answer, name_of_flag).startswith(flag(score, "--data"))
    if name != "refcoco":
        assert flag(answer, "--answers-file") == flag(score, "--answers") == str(run / "answers.jsonl")
        assert flag(answer, "--question-file").startswith(flag(score, "--data"))
    folder = f"{data}/{name}"
    made = [["python", "scripts/convert_document_questions.py", name, "--data", folder]] if name in OFFICIAL else []
    assert before == made


def test_the_flags_of_every_script_are_known(printed, project, monkeypatch):
    """The commands themselves parse what the scripts give them, and go on to look for the checkpoint or the data."""
    from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science, model_vqa_video
    from qwen.eval import model_vqa_loader as qwen_loader
    from qwen.eval import model_vqa_mmbench as qwen_mmbench
    from qwen.eval import model_vqa_science as qwen_science
    from qwen.eval import test_refcoco as refcoco
    from scripts import convert_document_questions
    from vscan.eval.__main__ import make_parser

    modules = (model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science, model_vqa_video)
    modules += (qwen_loader, qwen_mmbench, qwen_science, refcoco)
    mains = {module.__name__: module.main for module in modules}
    mains["scripts/convert_document_questions.py"] = convert_document_questions.main
    monkeypatch.chdir(project)  # the paths are relative to it, and nothing lies there
    assert set(printed) == {*ALL, *((family, "") for family in FAMILIES)}
    for (_, name), commands in printed.items():
        assert len(commands) == (1 if not name else 3 if name in OFFICIAL else 2)
        for words in commands:
            command, *flags = words[2:] if words[1] == "-m" else words[1:]
            if command == "vscan.eval":
                make_parser().parse_args(flags)
            else:
                with pytest.raises(FileNotFoundError):
                    mains[command](flags)


LLAVA = "--temperature 0 --conv-mode vicuna_v1"


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        (
            "llava1_5",
            "gqa",
            "python -m llava.eval.model_vqa_loader --model-path ../models/llava-v1.5-7b "
            "--question-file ../data/eval/gqa/llava_gqa_testdev_balanced.jsonl --image-folder ../data/eval/gqa/images "
            f"--answers-file playground/out/eval/llava1_5/gqa/vscan-11.1/answers.jsonl {LLAVA} "
            "--layer_list '[16]' --image_token_list '[32]' --visual_token_num 96",
        ),
        (
            "llava1_6",
            "mmbench_cn",
            "python -m llava.eval.model_vqa_mmbench --model-path ../models/llava-v1.6-vicuna-7b "
            "--question-file ../data/eval/mmbench_cn/mmbench_dev_cn_20231003.tsv "
            f"--answers-file playground/out/eval/llava1_6/mmbench_cn/vscan-11.1/answers.jsonl {LLAVA} "
            "--layer_list '[16]' --image_token_list '[32]' --visual_token_num 96 --single-pred-prompt --lang cn",
        ),
        (
            "qwen2_5_vl",
            "sqa",
            "python -m qwen.eval.model_vqa_science --model-path ../models/Qwen2.5-VL-7B-Instruct "
            "--question-file ../data/eval/scienceqa/llava_test_CQM-A.json "
            "--image-folder ../data/eval/scienceqa/images/test "
            "--answers-file playground/out/eval/qwen2_5_vl/science_qa/vscan-11.1/answers.jsonl --temperature 0 "
            "--layer-list '[14]' --image-token-ratio-list '[0.333]' --image-token-ratio 0.167 --single-pred-prompt",
        ),
        (
            "qwen2_5_vl",
            "refcoco",
            "python -m qwen.eval.test_refcoco --model-path ../models/Qwen2.5-VL-7B-Instruct "
            "--data-root ../data/eval/refcoco --image-root ../data/eval/refcoco/images "
            "--output-dir playground/out/eval/qwen2_5_vl/refcoco/vscan-50 --temperature 0 "
            "--layer-list '[14]' --image-token-ratio-list '[0.67]' --image-token-ratio 0.6",
        ),
        (
            "video_llava",
            "msrvtt",
            "python -m llava.eval.model_vqa_video --model-path ../models/Video-LLaVA-7B "
            "--question-file ../data/eval/GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA/test_q.json "
            "--truth-file ../data/eval/GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA/test_a.json "
            "--video-folder ../data/eval/GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA/videos/all "
            "--answers-file playground/out/eval/video_llava/msrvtt/vscan-25/answers.jsonl "
            "--temperature 0 --conv-mode llava_v1 "
            "--layer_list '[16]' --image_token_list '[32]' --visual_token_num 96 --on-error skip",
        ),
        (
            "v1_5",
            "mme",
            "python -m llava.eval.model_vqa_loader --model-path ../models/llava-v1.5-7b "
            "--question-file playground/data/eval/MME/llava_mme.jsonl "
            "--image-folder playground/data/eval/MME/MME_Benchmark_release_version/MME_Benchmark "
            f"--answers-file playground/out/eval/v1_5/mme/vispruner-64-0.75/answers.jsonl {LLAVA} "
            "--method vispruner --visual_token_num 64 --important_ratio 0.75",
        ),
        (
            "v1_6",
            "mmvet",
            "python -m llava.eval.model_vqa --model-path ../models/llava-v1.6-vicuna-7b "
            "--question-file playground/data/eval/mm-vet/llava-mm-vet.jsonl "
            "--image-folder playground/data/eval/mm-vet/images "
            f"--answers-file playground/out/eval/v1_6/mm_vet/vispruner-32-0.5/answers.jsonl {LLAVA} "
            "--method vispruner --visual_token_num 32 --important_ratio 0.5",
        ),
    ],
)
def test_the_command_is_this_one(project, family, name, expected):
    assert dry(project, family, name)[0] == shlex.split(expected)
