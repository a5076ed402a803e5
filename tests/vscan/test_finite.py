"""Visual features that hold NaN or infinity: an error that names the dtype, in every family, format and stage."""

import pytest
import torch
from helpers import pictures, prompt, tiny_llava
from qwen_helpers import image, inputs_of, tiny_qwen

import vscan
from vscan.compat import takes_encoded

LLAVA = {"local_layer": 1, "global_layer": -2}
STAGES = {
    "encoder": {"visual_tokens": 10},
    "both": {"visual_tokens": 10, "layers": {2: 4}},
    "decoder": {"layers": {2: 4}},
}
MESSAGE = "expected visual features that are finite, got NaN or infinity in float32: load the model in bfloat16"


def llava(method):
    model = tiny_llava(num_layers=4, vision_layers=4, side=8)
    ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, 7]], 64)
    fields = LLAVA if method == "vscan" else {}
    return model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}, fields


def qwen(method):
    return tiny_qwen(), inputs_of([[1, image(5, 6), 5], [1, 4, image(4, 9), 6, 7]]), {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["vscan", "vispruner", "random"])
@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("family", [llava, qwen])
def test_features_that_are_not_finite_are_refused(family, stages, method, value):
    model, inputs, fields = family(method)
    broken = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    broken["pixel_values"][-1] = value
    with vscan.reduce(model, method, **STAGES[stages], **fields) as reduction, torch.no_grad():
        for call in (model, lambda **given: model.generate(**given, max_new_tokens=2)):
            with pytest.raises(ValueError, match=MESSAGE):
                call(**broken)
        model.generate(**inputs, max_new_tokens=2)  # the next prompt is answered
        assert reduction.stats().rows[0].stages[-1][1] in (10, 4)


def test_a_token_that_is_left_counts_as_left_whatever_it_holds():
    """NaN was once what a dropped token held, and a broken one was taken for dropped."""
    model, inputs, fields = llava("vscan")
    if not takes_encoded(model):
        pytest.skip("this transformers does not take encoded images")
    with vscan.reduce(model, visual_tokens=10, layers={2: 4}, **fields) as reduction, torch.no_grad():
        encoded = model.model.get_image_features(inputs["pixel_values"])
        encoded.pooler_output[0][encoded.kept[0].nonzero()[0]] = torch.nan
        model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_encoder_outputs={"image": encoded},
        )
        assert [row.stages for row in reduction.stats().rows] == [[[0, 10], [2, 4]]] * 2


@pytest.mark.parametrize("setting", [{"visual_tokens": 96}, {"layers": {4: 32}}])
def test_the_original_format_refuses_them_too(checkpoint, setting):
    from llava.model.builder import load_pretrained_model

    _, model, _, _ = load_pretrained_model(str(checkpoint), device="cpu", dtype="float32")
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, -200, 5, 6]])
    with vscan.reduce(model, **setting), torch.no_grad():
        with pytest.raises(ValueError, match=MESSAGE):
            model.generate(ids, images=pixels * torch.inf, max_new_tokens=1)
        assert model.generate(ids, images=pixels, max_new_tokens=1).shape == (1, 1)
