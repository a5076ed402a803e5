"""Checkpoints that are not whole: every family and format refuses them in one line that says where and what."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen import build_checkpoint as build_qwen

from llava.eval.model_vqa_loader import main
from llava.model.builder import load_model as load_llava
from llava.model.check import check_checkpoint as check_llava
from llava.model.conversion import convert
from llava.model.multimodal_encoder.builder import PREFIX
from playground.tiny import build_checkpoint as build_llava
from qwen.model.builder import load_model as load_qwen
from qwen.model.check import check_checkpoint as check_qwen
from vscan.eval.arguments import run_command
from vscan.io.checkpoint import choose_dtype, read_json
from vscan.io.weights import check_finite

KINDS = {"llava": (check_llava, load_llava), "hf": (check_llava, load_llava), "qwen": (check_qwen, load_qwen)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build_llava(folder / "llava")
    convert(folder / "llava", folder / "hf")
    build_qwen(folder / "qwen")
    return folder


@pytest.fixture(params=KINDS)
def case(request, models, tmp_path):
    """The folder of a copy, what checks its files, and what loads it."""
    return shutil.copytree(models / request.param, tmp_path / request.param), *KINDS[request.param]


@pytest.fixture
def llava(models, tmp_path):
    return shutil.copytree(models / "llava", tmp_path / "llava")


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_text(folder, **values):
    """Change the text model's values, wherever a format has them."""
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, **({"text_config": config["text_config"] | values} if "text_config" in config else values))


def change_weights(folder, change, to_bin=False):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    if to_bin:
        file.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, file, metadata={"format": "pt"})


def find(weights, end):
    return next(name for name in sorted(weights) if name.endswith(end))


def replaced(end, value):
    def change(weights):
        name = find(weights, end)
        weights[name] = value(weights[name])

    return change


def without(*ends):
    return lambda weights: [weights.pop(find(weights, end)) for end in ends]


def error(action, *args, **kwargs):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        action(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def poisoned(value):
    def poison(weight):
        weight = weight.clone()
        weight.view(-1)[3] = value
        return weight

    return poison


# ------------------------------------------------------------------------------------------------- weights, at loading


@pytest.mark.parametrize("end", ["lm_head.weight", "layers.2.self_attn.q_proj.weight", "embed_tokens.weight"])
def test_a_missing_weight_is_named(case, end):
    folder, _, load = case
    change_weights(folder, without(end))
    said = error(load, folder, device="cpu")
    assert f"model path {str(folder)!r}: expected all weights of the model, 1 are missing: " in said
    assert end in said


@pytest.mark.parametrize(
    ("kind", "part"), [("llava", "mm_projector"), ("hf", "multi_modal_projector"), ("hf", "vision_tower")]
)
def test_a_missing_projector_or_tower_is_named(models, tmp_path, kind, part):
    folder = shutil.copytree(models / kind, tmp_path / kind)
    change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if part in name])
    said = error(load_llava, folder, device="cpu")
    assert re.search(rf"expected all weights of the model, \d+ are missing: .*{part}", said)


@pytest.mark.parametrize(("change", "message"), [(1, "9 are too many: "), (-1, "are missing: ")])
def test_another_number_of_layers_than_the_weights_have_is_refused(case, change, message):
    folder, _, load = case
    config = json.loads((folder / "config.json").read_text())
    number = config.get("text_config", config)["num_hidden_layers"]
    change_text(folder, num_hidden_layers=number - change)
    said = error(load, folder, device="cpu")
    message = message if folder.name != "qwen" else message.replace("9", "12")  # its layers have biases
    assert message in said
    assert f"layers.{number - (change > 0)}." in said


def test_weights_of_another_shape_are_refused_with_both(case):
    folder, _, load = case
    change_weights(folder, replaced("layers.1.mlp.up_proj.weight", lambda weight: weight[:100].clone()))
    said = error(load, folder, device="cpu")
    assert "expected weights of the shapes in its config, 1 have others: " in said
    assert "up_proj.weight (expected [128, 64], got [100, 64])" in said


def test_weights_that_are_not_finite_are_refused(case):
    folder, _, load = case
    change_weights(folder, replaced("layers.1.mlp.up_proj.weight", poisoned(float("nan"))))
    said = error(load, folder, device="cpu")
    assert "expected finite weights in float32, 1 hold NaN or infinity: " in said
    assert "layers.1.mlp.up_proj.weight" in said


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(case):
    folder, _, load = case
    change_weights(folder, replaced("layers.1.mlp.up_proj.weight", poisoned(1e6)))
    assert "expected finite weights in float16, 1 hold" in error(load, folder, device="cpu", dtype="float16")
    load(folder, device="cpu")


def test_integer_weights_are_refused_by_the_file_alone(case):
    folder, check, load = case
    change_weights(folder, replaced("layers.1.mlp.up_proj.weight", lambda weight: (weight * 99).to(torch.int8)))
    for action in (check, load):
        said = error(action, folder)
        assert f"{folder / 'model.safetensors'}: expected floating-point weights, 1 are not: " in said
        assert "up_proj.weight (I8)" in said


def test_integer_weights_in_a_pickle_are_refused(case):
    folder, _, load = case
    change = replaced("layers.1.mlp.up_proj.weight", lambda weight: (weight * 99).to(torch.int8))
    change_weights(folder, change, to_bin=True)
    said = error(load, folder, device="cpu")
    assert "pytorch_model.bin: expected floating-point weights, 1 are not: " in said
    assert "(int8)" in said


def test_tied_embeddings_need_no_head_and_harmless_weights_may_be_there(case):
    folder, _, load = case
    change_config(folder, tie_word_embeddings=True)
    if folder.name == "hf":
        change_text(folder, tie_word_embeddings=True)

    def change(weights):
        without("lm_head.weight")(weights)
        stem = find(weights, "layers.1.mlp.up_proj.weight").removesuffix("mlp.up_proj.weight")
        weights[f"{stem}self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    change_weights(folder, change)
    model = load(folder, device="cpu")
    assert model.lm_head.weight is model.get_input_embeddings().weight


# ---------------------------------------------------------------------------------------------------- the vision tower


@pytest.mark.parametrize("place", ["inside", "folder"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.3.mlp.fc1.weight"), "expected all weights of the model, 1 are missing: encoder.layers.3.mlp"),
        (lambda weights: weights.update({"x.weight": torch.ones(2)}), "expected only weights of the model, 1 are too"),
        (replaced("layers.3.mlp.fc1.weight", lambda w: w[:5].clone()), "fc1.weight (expected [96, 48], got [5, 48])"),
        (replaced("layers.3.mlp.fc1.weight", poisoned(float("nan"))), "expected finite weights in float32, 1 hold"),
        (replaced("layers.3.mlp.fc1.weight", lambda w: w.to(torch.int8)), "expected floating-point weights, 1 are not"),
    ],
    ids=["missing", "unknown", "shape", "NaN", "int"],
)
def test_a_tower_is_held_to_the_same(llava, place, change, message):
    tower = load_file(llava / "clip_tower" / "model.safetensors")
    change(tower)
    if place == "folder":
        save_file(tower, llava / "clip_tower" / "model.safetensors", metadata={"format": "pt"})
    else:
        named = {f"{PREFIX}vision_model.{name}": value for name, value in tower.items()}
        change_weights(llava, lambda weights: weights.update(named))
        (llava / "clip_tower" / "model.safetensors").unlink()
    said = error(load_llava, llava, device="cpu")
    assert message in said
    assert str(llava) in said


def test_a_tower_s_folder_is_judged_by_its_files(llava):
    tower = llava / "clip_tower"
    weights = (tower / "model.safetensors").read_bytes()
    (tower / "model.safetensors").write_bytes(POINTER)
    assert f"{tower / 'model.safetensors'}: expected the file itself, got a Git LFS pointer" in error(
        check_llava, llava
    )
    (tower / "model.safetensors").unlink()
    assert f"model path {str(tower)!r}: expected weights (one of " in error(check_llava, llava)
    (tower / "model.safetensors").write_bytes(weights)
    change_config(tower, num_attention_heads=0)
    assert "num_attention_heads: expected an int of at least 1, got 0" in error(check_llava, llava)
    change_config(tower, num_attention_heads=4, model_type="siglip_vision_model")
    assert "expected one of the model types clip, clip_vision_model, got 'siglip_vision_model'" in error(
        check_llava, llava
    )


# ------------------------------------------------------------------------------------------------------ configs, early


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": "eight"}, "num_hidden_layers: expected an int of at least 1, got 'eight'"),
        ({"num_hidden_layers": None}, "num_hidden_layers: expected an int of at least 1, got None"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected an int of at least 1, got True"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected an int of at least 1, got 0"),
        ({"num_attention_heads": 5, "head_dim": None}, "num_attention_heads: expected a divisor of hidden_size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads 4, got 3"),
        ({"vocab_size": -1}, "vocab_size: expected an int of at least 1, got -1"),
        ({"hidden_size": 64.0}, "hidden_size: expected an int of at least 1, got 64.0"),
    ],
)
def test_a_size_that_is_none_is_named(case, values, message):
    folder, check, _ = case
    change_text(folder, **values)
    assert message in error(check, folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reduction": [1]}, "reduction: expected an object, got [1]"),
        ({"reduction": "vscan"}, "reduction: expected an object, got 'vscan'"),
        ({"reduction": {"vscan": 5}}, "reduction.vscan: expected an object of hyper-parameters, got 5"),
        ({"reduction": {"prune_layer": 5}}, "reduction.prune_layer: expected an object of hyper-parameters, got 5"),
        ({"torch_dtype": "int8"}, "torch_dtype: expected one of float16, bfloat16, float32, float64, got 'int8'"),
        ({"dtype": ["float16"]}, "dtype: expected one of float16, bfloat16, float32, float64, got ['float16']"),
        ({"text_config": 5}, "text_config: expected an object, got 5"),
        ({"vision_config": [1]}, "vision_config: expected an object, got [1]"),
    ],
)
def test_a_value_of_a_wrong_kind_is_named(case, values, message):
    folder, check, _ = case
    change_config(folder, **values)
    said = error(check, folder)
    assert message in said
    assert str(folder / "config.json") in said


@pytest.mark.parametrize("model_type", ["llava_mpt", "frobnicate", "llava_mistral", "llama", None])
def test_another_model_type_is_no_llama(llava, model_type):
    change_config(llava, model_type=model_type)
    for action in (check_llava, load_llava):
        said = error(action, llava)
        assert "one of the model types llava, llava_llama (original LLaVA)" in said
        assert said.endswith(f"got model_type {model_type!r}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_vision_tower": 5}, "mm_vision_tower: expected the name of a vision tower, got 5"),
        ({"mm_vision_select_layer": 10}, "mm_vision_select_layer: expected a layer of -9 to 8 of the vision tower"),
        ({"mm_hidden_size": 64}, "mm_hidden_size: expected 48, as "),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints: expected pairs of width and height, got None"),
    ],
)
def test_what_only_the_original_format_has_is_checked(llava, values, message):
    change_config(llava, **values)
    assert message in error(check_llava, llava)


# ------------------------------------------------------------------------------------------------ files that are others


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer"])
def test_a_git_lfs_pointer_is_called_that(case, name):
    folder, check, _ = case
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    elif name == "tokenizer":
        name = "tokenizer.model" if folder.name == "llava" else "tokenizer.json"
    (folder / name).write_bytes(POINTER)
    assert f"{folder / name}: expected the file itself, got a Git LFS pointer to it" in error(check, folder)


def test_weights_that_are_cut_short_are_found_before_torch_is_needed(case):
    folder, check, _ = case
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: expected plain weights, got SafetensorError: " in error(check, folder)


@pytest.mark.parametrize(
    "index", [{"weight_map": ["a"]}, {"weight_map": {}}, {"weight_map": {"a": 5}}, {"weight_map": "x"}, {}]
)
def test_an_index_that_is_none_is_named(case, index):
    folder, check, _ = case
    (folder / "model.safetensors").unlink()
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    assert f"{file}: weight_map: expected an object of weights and their files, got " in error(check, folder)


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "beside weights"])
def test_an_adapter_is_called_that_and_its_base_is_named(case, whole):
    folder, check, load = case
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "the/base", "peft_type": "LORA"}')
    if not whole:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / "config.json").unlink()
    for action in (check, load):
        said = error(action, folder)
        assert "expected a whole checkpoint, got an adapter (adapter_config.json) of the base model the/base" in said


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_broken_settings_are_refused(case, name):
    folder, check, _ = case
    (folder / name).write_text("[")
    assert f"{folder / name}: expected JSON, got " in error(check, folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"suppress_tokens": 5}', '{"max_new_tokens": "many"}'])
def test_a_broken_generation_config_is_refused_by_whatever_loads(case, content, tmp_path):
    folder, _, load = case
    (folder / "generation_config.json").write_text(content)
    assert f"{folder / 'generation_config.json'}: expected " in error(load, folder, device="cpu")
    if folder.name == "llava":
        assert "generation_config.json: expected " in error(convert, folder, tmp_path / "new")


@pytest.mark.parametrize(
    ("encoding", "line", "byte"), [("utf-16", 1, "0xff"), ("utf-16-le", 1, "0x00"), ("utf-8-sig", 1, "0xef")]
)
def test_a_file_in_another_encoding_is_called_that(tmp_path, encoding, line, byte):
    file = tmp_path / "config.json"
    file.write_text('{\n"a": "x"}', encoding)
    assert error(read_json, file) == (
        f"{file}, line {line}: expected UTF-8 without a byte order mark, got the byte {byte}"
    )


def test_latin_1_is_named_by_its_line_and_an_empty_file_is_called_empty(case):
    folder, check, _ = case
    file = folder / "config.json"
    file.write_bytes('{\n"a": "é"}'.encode("latin-1"))
    assert f"{file}, line 2: expected UTF-8 without a byte order mark, got the byte 0xe9" in error(check, folder)
    file.write_bytes(b"")
    assert error(check, folder) == f"{file}: expected the file's content, got an empty file"


# ----------------------------------------------------------------------------------------------------- what stays true


def test_a_conversion_refuses_what_is_no_number(llava, tmp_path):
    change_weights(llava, replaced("layers.1.mlp.up_proj.weight", poisoned(float("nan"))))
    assert "expected finite weights in float32, 1 hold NaN" in error(convert, llava, tmp_path / "new")
    change_weights(llava, replaced("layers.1.mlp.up_proj.weight", lambda w: torch.ones_like(w).to(torch.int8)), True)
    assert "expected floating-point weights, 1 are not: " in error(convert, llava, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_text_model_s_dtype_counts_where_there_is_no_other(name):
    device = torch.device("cuda")
    config = {"text_config": {name: "bfloat16"}}
    assert choose_dtype("auto", config, device) == torch.bfloat16
    assert choose_dtype("auto", {**config, "dtype": "float32"}, device) == torch.float32
    assert choose_dtype("auto", {"text_config": None}, device) == torch.float16


def test_what_is_finite_passes_in_every_dtype():
    weights = {str(dtype): torch.full((3,), 5.0, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)}
    weights |= {"meta": torch.empty(3, device="meta"), "quantized": torch.ones(3, dtype=torch.uint8)}
    weights |= {"empty": torch.empty(0), "scalar": torch.tensor(1.0)}
    check_finite(weights, "here")
    with pytest.raises(ValueError, match="here: expected finite weights in bfloat16, 1 hold NaN or infinity: bad"):
        check_finite({**weights, "bad": torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)}, "here")


def test_a_command_says_it_in_one_line(llava, tmp_path, monkeypatch, capfd):
    change_weights(llava, without("model.mm_projector.0.bias"))
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "text": "What?"}\n')
    given = {"model-path": llava, "question-file": tmp_path / "q.jsonl", "image-folder": tmp_path, "device": "cpu"}
    given |= {"answers-file": tmp_path / "a.jsonl", "num-workers": 0}
    monkeypatch.setattr("sys.argv", ["command", *(f"--{name}={value}" for name, value in given.items())])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert [line for line in capfd.readouterr().err.splitlines() if line and "Loading weights" not in line] == [
        f"error: model path {str(llava)!r}: expected all weights of the model, 1 are missing: model.mm_projector.0.bias"
    ]


def test_files_are_judged_without_torch(models):
    code = "import sys\nfrom llava.model.check import check_checkpoint as check\nfrom qwen.model.check import *\n"
    code += f"check({str(models / 'hf')!r}), check_checkpoint({str(models / 'qwen')!r})\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
