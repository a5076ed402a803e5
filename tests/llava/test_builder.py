"""Loading checkpoints: where the tower is found, whose weights it has, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import choose_dtype, load_model
from llava.model.multimodal_encoder.builder import PREFIX, find_vision_tower


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "models" / "tiny-llava")


def change(folder, **values):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


@pytest.mark.parametrize("place", ["inside", "beside", "beside, without the owner's name", "elsewhere"])
def test_the_tower_is_found(copy, tmp_path, place):
    name = "openai/clip-tower"
    target = {
        "inside": copy / name,
        "beside": copy.parent / name,
        "beside, without the owner's name": copy.parent / "clip-tower",
        "elsewhere": tmp_path / "far" / "tower",
    }[place]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(copy / "clip_tower", target)
    name = str(target) if place == "elsewhere" else name
    assert find_vision_tower(name, copy) == target
    change(copy, mm_vision_tower=name)
    model = load_model(copy, device="cpu")
    weight = load_file(target / "model.safetensors")["pre_layrnorm.weight"]
    assert torch.equal(model.model.vision_tower.vision_tower.pre_layrnorm.weight, weight)


def test_a_tower_that_is_nowhere_is_named_with_every_place(copy):
    shutil.rmtree(copy / "clip_tower")
    with pytest.raises(
        FileNotFoundError, match=r"mm_vision_tower 'clip_tower': expected a folder with config\.json at"
    ):
        load_model(copy, device="cpu")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_weights_inside_a_checkpoint_are_the_tower_s(copy, kind):
    weights = load_file(copy / "model.safetensors")
    tower = load_file(copy / "clip_tower" / "model.safetensors")
    inside = {f"{PREFIX}vision_model.{name}": value + 1 for name, value in tower.items()}
    if kind == "bin":
        (copy / "model.safetensors").unlink()
        torch.save({**weights, **inside}, copy / "pytorch_model.bin")
    else:
        save_file({**weights, **inside}, copy / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(copy, device="cpu").model.vision_tower.vision_tower.state_dict()
    for name, value in tower.items():
        assert torch.equal(loaded[name.removeprefix("vision_model.")], value + 1)


class Other:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_other_objects_is_refused_and_not_executed(copy, capsys):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save({**weights, "other": Other()}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected plain weights, got a pickle that holds other objects"):
        load_model(copy, device="cpu")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_projector_type": "resampler"}, "mm_projector_type: expected linear, mlp2x_gelu .* got 'resampler'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature: expected 'patch', got 'cls_patch'"),
    ],
)
def test_what_is_not_supported_is_named(copy, values, message):
    change(copy, **values)
    with pytest.raises(ValueError, match=message):
        load_model(copy, device="cpu")


def test_an_unknown_architecture_is_named(copy):
    (copy / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match=r"expected a config with mm_vision_tower and .* got model_type 'blip'"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize(
    ("dtype", "stored", "device", "expected"),
    [
        ("auto", "float16", "cuda", torch.float16),
        ("auto", "float16", "cpu", torch.float32),
        ("auto", "bfloat16", "cpu", torch.bfloat16),
        ("auto", "float32", "cpu", torch.float32),
        ("auto", None, "cuda", torch.float16),
        ("float16", "float32", "cpu", torch.float16),
        (torch.float64, "float16", "cpu", torch.float64),
    ],
)
def test_the_dtype_is_the_checkpoint_s_but_no_half_precision_on_a_cpu(dtype, stored, device, expected):
    config = {} if stored is None else {"torch_dtype": stored}
    assert choose_dtype(dtype, config, torch.device(device)) == expected
    with pytest.raises(ValueError, match="dtype: expected auto, float32, bfloat16 or float16, got 'int8'"):
        choose_dtype("int8", config, torch.device(device))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tower_projector_and_decoder_share_the_dtype(checkpoint, dtype):
    model = load_model(checkpoint, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    output = model(torch.tensor([[1, 5, -200, 6]]), images=torch.zeros(1, 3, 336, 336))
    assert output.logits.shape[:2] == (1, 579)
    assert output.logits.isfinite().all()
