"""What the project's owner has named stays where it is: modules, flags, scripts, classes and their methods."""

import contextlib
import importlib
import inspect
import io
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    *(f"llava.eval.{name}" for name in ("answering", "command", "layout")),
    *(f"qwen.eval.{name}" for name in ("answering", "arguments", "command")),
]
# Flags in the owner's spelling; each has the other one too, with _ for - or the other way round.
GENERATION = """--model-path --question-file --answers-file --num-chunks --chunk-idx --temperature --top_p --num_beams
--max_new_tokens --batch-size --num-workers --on-error --dtype --device --attn-implementation --method --positions"""
LLAVA = "--visual_token_num --layer_list --image_token_list --model-base --conv-mode"
QWEN = "--image-token-ratio --layer-list --image-token-ratio-list --min-pixels --max-pixels"
OF_REFCOCO = GENERATION.replace("--question-file --answers-file --num-chunks --chunk-idx ", "")
OF_CLIPS = "--frame-cls --group"
OF_VIDEO_LLAVA = """--model_path --cache_dir --video_dir --gt_file_question --gt_file_answers --output_dir --output_name
--num_chunks --chunk_idx --device --model_base --model_max_length"""
COMMANDS = {
    "llava.eval.eval_pope": "--annotation-dir --question-file --result-file",
    "llava.eval.eval_science_qa": "--base-dir --result-file --output-file --output-result --split --options",
    "llava.eval.eval_textvqa": "--annotation-file --result-file --result-dir",
    "llava.eval.model_vqa": f"{GENERATION} {LLAVA} --image-folder",
    "llava.eval.model_vqa_loader": f"{GENERATION} {LLAVA} --image-folder",
    "llava.eval.model_vqa_mmbench": f"{GENERATION} {LLAVA} --lang --all-rounds --single-pred-prompt",
    "llava.eval.model_vqa_science": f"{GENERATION} {LLAVA} --image-folder --single-pred-prompt",
    "llava.eval.model_vqa_video": f"{GENERATION} {LLAVA} {OF_CLIPS} --truth-file --video-folder",
    "llava.eval.run_inference_video_qa": f"{OF_VIDEO_LLAVA} {LLAVA} {OF_CLIPS}",
    "llava.eval.run_inference_video_qa_act": f"{OF_VIDEO_LLAVA} {LLAVA} {OF_CLIPS}",
    "qwen.eval.model_vqa_loader": f"{GENERATION} {QWEN} --image-folder",
    "qwen.eval.model_vqa_mmbench": f"{GENERATION} {QWEN} --lang --all-rounds --single-pred-prompt",
    "qwen.eval.model_vqa_science": f"{GENERATION} {QWEN} --image-folder --single-pred-prompt",
    "qwen.eval.test_refcoco": f"{OF_REFCOCO} {QWEN} --data-root --image-root --output-dir --datasets",
}
FAMILIES = ("llava1_5", "llava1_6", "qwen2_5_vl", "v1_5/eval", "v1_6/eval")
BENCHMARKS = [
    "docvqa",
    "gqa",
    "infovqa",
    "mmbench",
    "mmbench_cn",
    "mme",
    "mmvet",
    "pope",
    "seed",
    "sqa",
    "textvqa",
    "vizwiz",
    "vqav2",
]
SCRIPTS = [f"{family}/{name}.sh" for family in FAMILIES for name in BENCHMARKS]
SCRIPTS += [f"video_llava/{name}.sh" for name in ("activitynet", "msrvtt", "msvd", "tgif")]
SCRIPTS += ["qwen2_5_vl/refcoco.sh", "run_all.sh", "_common.sh"]
ARCH, LLAMA, VL = "llava.model.llava_arch", "llava.model.modeling_llama_x", "qwen.model.qwen2_5_vl_custom"
PRUNE = ["self", "layer_idx", "hidden", "segment", "args"]
METHODS = {
    (ARCH, "LlavaMetaForCausalLM", "encode_images"): ["self", "images"],
    (LLAMA, "LlamaModel", "forward_x"): ["self", "args", "kwargs"],
    (LLAMA, "LlamaModel", "layer_prune"): PRUNE,
    (VL, "Qwen2_5_VisionTransformerPretrainedModel_X", "forward"): ["self", "hidden_states", "grid_thw", "kwargs"],
    (VL, "Qwen2_5_VLModel_X", "forward"): ["self", "args", "kwargs"],
    (VL, "Qwen2_5_VLModel_X", "layer_prune"): PRUNE,
}


def spellings(flag: str) -> set[str]:
    """A flag with _ and with - inside."""
    return {"--" + flag[2:].replace("_", "-"), "--" + flag[2:].replace("-", "_")}


def test_no_module_of_the_evaluation_is_missing_here():
    files = {*(ROOT / "llava" / "eval").glob("*.py"), *(ROOT / "qwen" / "eval").glob("*.py")}
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert {name for name in names if not name.endswith("__init__")} >= {*MODULES, *COMMANDS}


@pytest.mark.parametrize("name", [*MODULES, "llava.eval", "qwen.eval"])
def test_a_module_can_be_imported(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_flags_in_both_spellings(name):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0
    found = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", printed.getvalue()))
    assert {spelling for flag in COMMANDS[name].split() for spelling in spellings(flag)} <= found


def test_the_scripts_are_there_and_can_be_run():
    assert len(SCRIPTS) == 72
    for name in SCRIPTS:
        file = ROOT / "scripts" / name
        assert file.is_file(), name
        assert os.access(file, os.X_OK) or name == "_common.sh", name


@pytest.mark.parametrize(("module", "cls", "name"), METHODS)
def test_a_method_is_written_in_its_class_and_takes_what_it_took(module, cls, name):
    function = vars(getattr(importlib.import_module(module), cls))[name]
    parameters = inspect.signature(function).parameters
    expected = METHODS[module, cls, name]
    assert [each for each in parameters if each in expected] == expected
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for each in parameters.values():
        assert each.name in expected or each.default is not each.empty or each.kind in optional
