"""Video-LLaVA in the original format: loaded and refused, clips and images in prompts, and converted."""

import json
import logging
import shutil

import pytest
import torch
from helpers import close
from safetensors.torch import load_file, save_file
from tiny_video import build_checkpoint
from transformers import VideoLlavaForConditionalGeneration
from video_helpers import NUM_FRAMES, clip, inputs_of, picture, tiny_original_video

import vscan
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_model, load_pretrained_model
from llava.model.conversion import convert
from llava.model.convert import main
from llava.model.language_model.video_llava_llama import VideoLlavaLlamaForCausalLM
from vscan.compat import pixels_of_images
from vscan.io import checkpoint as checkpoint_module
from vscan.io import load

IMAGE, VIDEO = "LanguageBind_Image", "LanguageBind_Video_merge"
IN_VIDEO = "model.video_tower.video_tower."


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny-video-llava")


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "models" / "tiny-video-llava")


def change(folder, **values):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


def change_weights(folder, function):
    weights = load_file(folder / "model.safetensors")
    save_file(function(weights), folder / "model.safetensors", metadata={"format": "pt"})


def frames(seed: int = 0, number: int = 8) -> torch.Tensor:
    """A random clip of 224 x 224 pixels."""
    return torch.randn(3, number, 224, 224, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- loading


def test_mm_video_tower_tells_a_video_llava_from_a_llava(copy):
    change(copy, model_type="llava")  # as published
    tokenizer, model, _, context_len = load_pretrained_model(str(copy), device="cpu")
    assert isinstance(model, VideoLlavaLlamaForCausalLM)
    assert isinstance(load(copy, device="cpu").model, VideoLlavaLlamaForCausalLM)
    assert context_len == 4096
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    weights = load_file(copy / "model.safetensors")
    for name, tower in (("image", model.model.vision_tower), ("video", model.model.video_tower)):
        state = tower.vision_tower.state_dict()
        for key, value in state.items():
            if not key.endswith("position_ids"):
                assert torch.equal(value, weights[f"model.{name}_tower.{name}_tower.{key}"])
    assert model.model.video_tower.num_frames == 8


def test_buffers_of_old_versions_are_passed_over(copy):
    change_weights(copy, lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert load_model(copy, device="cpu").num_parameters() > 0


def test_two_bin_shards_are_read_as_published(copy):
    expected = load_model(copy, device="cpu").state_dict()
    weights, names = (
        load_file(copy / "model.safetensors"),
        [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)],
    )
    shards = [dict(list(weights.items())[part::2]) for part in (0, 1)]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, copy / name)
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (copy / "model.safetensors").unlink()
    found = load_model(copy, device="cpu").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda name: None, "expected all weights of the model, 1 are missing: encoder.layers.0.temporal_embedding"),
        (lambda name: {name + "_2": torch.ones(2)}, "1 are too many: encoder.layers.0.temporal_embedding_2"),
        (lambda name: {name: torch.ones(1, 4, 48)}, r"temporal_embedding (expected [1, 8, 48], got [1, 4, 48])"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_weights_of_a_tower_that_do_not_fit_are_one_line(copy, part, message):
    name = f"{IN_VIDEO}encoder.layers.0.temporal_embedding"

    def changed(weights):
        return {**{key: value for key, value in weights.items() if part(name) or key != name}, **(part(name) or {})}

    change_weights(copy, changed)
    with pytest.raises(ValueError, match="mm_video_tower") as caught:
        load_model(copy, device="cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_weight_beside_the_model_is_refused(copy):
    change_weights(copy, lambda weights: weights | {"model.audio_tower.a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"expected only weights of the model, 1 are too many: model\.audio_tower\.a"):
        load_model(copy, device="cpu")


@pytest.mark.parametrize("place", ["inside", "beside", "towers"])
def test_weights_of_a_languagebind_folder_come_before_those_inside(copy, place):
    folder = {"inside": copy, "beside": copy.parent, "towers": copy.parent / "towers"}[place] / VIDEO
    if place != "inside":
        folder.parent.mkdir(exist_ok=True)
        shutil.move(copy / VIDEO, folder)
    weights = load_file(copy / "model.safetensors")
    of_tower = {key.removeprefix(IN_VIDEO): value for key, value in weights.items() if key.startswith(IN_VIDEO)}
    whole = {f"vision_model.{key}": value + 1 for key, value in of_tower.items()}
    save_file({**whole, "text_model.a": torch.ones(1), "logit_scale": torch.ones(1)}, folder / "model.safetensors")
    state = load_model(copy, device="cpu").model.video_tower.vision_tower.state_dict()
    assert torch.equal(state["pre_layrnorm.bias"], of_tower["pre_layrnorm.bias"] + 1)
    assert torch.equal(
        state["encoder.layers.3.temporal_embedding"], of_tower["encoder.layers.3.temporal_embedding"] + 1
    )


def test_without_languagebind_folders_the_towers_are_the_published_ones(copy):
    shutil.rmtree(copy / VIDEO)
    with pytest.raises(
        ValueError,
        match=r"expected 1024, as LanguageBind_Video_merge .whose folder is not at hand. has it, got 48",
    ):
        load_model(copy, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_image_tower": None}, "mm_image_tower: expected the name of a tower, got None"),
        ({"mm_hidden_size": 64}, "mm_hidden_size: expected 48, as .*LanguageBind_Image has it, got 64"),
        ({"mm_vision_select_layer": 40}, "mm_vision_select_layer: expected a layer of -9 to 8 of the vision tower"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature: expected 'patch', got 'cls_patch'"),
        ({"mm_projector_type": "resampler"}, "mm_projector_type: expected linear"),
    ],
)
def test_what_a_config_cannot_say_is_named(copy, values, message):
    change(copy, **values)
    with pytest.raises(ValueError, match=message):
        load_model(copy, device="cpu")


def test_without_attention_over_time_a_clip_has_any_number_of_frames(copy):
    described = json.loads((copy / VIDEO / "config.json").read_text())
    described["vision_config"]["add_time_attn"] = False
    (copy / VIDEO / "config.json").write_text(json.dumps(described))
    model = load_model(copy, device="cpu")
    assert model.model.video_tower.num_frames is None
    five = frames(number=5)
    ids = torch.tensor([[1, *[IMAGE_TOKEN_INDEX] * 5, 7]])
    with torch.no_grad():
        assert model(ids, images=[five]).logits.shape[1] == 2 + 5 * 65
        one = model.embed_images([five[:, 2:3]]).pooler_output[0]
        close(model.embed_images([five]).pooler_output[0][2 * 65 : 3 * 65], one)


# ------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("shapes", "ids", "message"),
    [
        ([(3, 7, 32, 32)], [[1, *[-200] * 7]], r"videos of shape [3, 3, 32, 32], got one of shape [3, 7, 32, 32]"),
        ([(3, 6, 32, 32)], [[1, *[-200] * 6]], r"got one of shape [3, 6, 32, 32]"),
        ([(3, 32, 16)], [[1, -200]], r"images: expected images of shape [3, 32, 32] and"),
        ([(3, 3, 32, 32)], [[1, -200, -200]], "images as the prompts name, [2], got 1, which take [3] placeholders"),
        ([(3, 3, 32, 32)], [[1, *[-200] * 4]], "images as the prompts name, [4], got 1, which take [3] placeholders"),
        ([(3, 32, 32)], [[1, 5]], "expected as many images as the prompts name, [0], got 1"),
        ([], [[1, -200]], "expected as many images as the prompts name, [1], got 0"),
        (
            [(3, 3, 32, 32), (3, 3, 32, 32)],
            [[1, -200, -200, 5, 6], [1, *[-200] * 4]],  # as many as there are, but a clip in two prompts
            "images as the prompts name, [2, 4], got 2, which take [3, 3] placeholders",
        ),
    ],
)
def test_clips_and_placeholders_that_do_not_fit_are_one_line(shapes, ids, message):
    model = tiny_original_video()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is compared
        model.generate(torch.tensor(ids), images=[torch.zeros(shape) for shape in shapes] or None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_frame_s_tokens_stand_where_its_placeholder_stood():
    model, entered = tiny_original_video(), []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    ids = torch.tensor([[1, *[-200, 9] * NUM_FRAMES, -200, 5]])
    with torch.no_grad():
        model(ids, images=[clip(), picture()])
        video, image = model.embed_images([clip(), picture()]).pooler_output
        word = model.get_input_embeddings()(torch.tensor([9]))
    expected = [torch.cat((video[number * 65 : (number + 1) * 65], word)) for number in range(NUM_FRAMES)]
    assert torch.equal(entered[0][0, 1:-1], torch.cat((*expected, image)))


@pytest.mark.parametrize("images", ["stacked clips", "stacked images", "images with a dimension of 1"])
def test_images_may_come_stacked(images):
    model = tiny_original_video()
    parts = {
        "stacked clips": [clip(0), clip(1)],
        "stacked images": [picture(0), picture(1)],
        "images with a dimension of 1": [picture(0)[None], picture(1)[None]],
    }[images]
    of_each = NUM_FRAMES if images == "stacked clips" else 1
    ids = torch.tensor([[1, *[-200] * of_each, 5, *[-200] * of_each, 7]])
    with torch.no_grad():
        listed = model(ids, images=[part.squeeze(0) for part in parts]).logits
        given = parts if images.endswith("1") else torch.stack(parts)
        assert torch.equal(model(ids, images=given).logits, listed)


def test_what_was_encoded_can_be_given_again_in_another_order():
    model = tiny_original_video()
    ids = torch.tensor([[1, *[-200] * NUM_FRAMES, 5, -200, 7]])
    with torch.no_grad(), vscan.reduce(model, visual_tokens=20, layers={2: 6}, local_layer=1) as reduction:
        expected = model.generate(ids, images=[clip(), picture()], max_new_tokens=3)
        rows = reduction.stats().rows
        encoded = model.embed_images([picture(), clip(1), clip()])
        assert torch.equal(model.generate(ids, image_features=encoded.select([2, 0]), max_new_tokens=3), expected)
    assert reduction.stats().rows == rows


def test_a_batch_of_four_clips_takes_less_memory_than_dense():
    from vscan.tools.timing import peak_bytes

    model = tiny_original_video()
    inputs = inputs_of(model, [[1, clip(seed), 5] for seed in range(4)])

    def peak() -> int:
        with torch.no_grad():
            model(**inputs)
            return peak_bytes(lambda: model(**inputs), torch.device("cpu"))

    dense = peak()
    with vscan.reduce(model, visual_tokens=24, layers={2: 8}, local_layer=1):
        assert peak() <= dense


# ------------------------------------------------------------------------------------------------- conversion


def test_attention_over_time_is_not_lost_in_silence(copy, tmp_path, capsys):
    target = tmp_path / "hf"
    with pytest.raises(ValueError, match=r"expected --drop-temporal, for stock models have no place") as caught:
        convert(copy, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    main([str(copy), str(target), "--drop-temporal"])
    assert "dropped the video tower's attention over time" in capsys.readouterr().out
    names = load_file(target / "model.safetensors").keys()
    assert not [name for name in names if "temporal" in name]
    assert len([name for name in names if name.startswith("video_tower.vision_model.")]) == 7 + 8 * 16


def test_a_converted_model_gives_the_answers_of_the_original_without_time(copy, tmp_path):
    convert(copy, tmp_path / "hf", drop_temporal=True)
    described = json.loads((copy / VIDEO / "config.json").read_text())
    described["vision_config"]["add_time_attn"] = False
    (copy / VIDEO / "config.json").write_text(json.dumps(described))
    original, stock = load_model(copy, device="cpu"), load_model(tmp_path / "hf", device="cpu")
    assert isinstance(stock, VideoLlavaForConditionalGeneration)
    config = stock.config
    size = original.config.vocab_size
    assert (config.image_token_id, config.video_token_id, config.pad_token_id) == (size, size + 1, size + 2)
    assert config.text_config.vocab_size == -(-(size + 3) // 64) * 64
    assert config.vision_config.hidden_act == "gelu"
    image, video = frames(1)[:, 0], frames()
    pixels = {pixels_of_images(stock.base_model): image[None], "pixel_values_videos": video.transpose(0, 1)[None]}
    ids = torch.tensor([[1, *[config.video_token_id] * 8 * 65, 9, *[config.image_token_id] * 64, 7]])
    for settings in ({}, {"visual_tokens": 24, "layers": {4: 8}}):
        with torch.no_grad(), vscan.reduce(original, **settings) as ours, vscan.reduce(stock, **settings) as theirs:
            expected = original(torch.tensor([[1, *[-200] * 8, 9, -200, 7]]), images=[video, image]).logits
            close(stock(ids, **pixels).logits[..., :size], expected)
            assert ours.stats().rows == theirs.stats().rows
    convert(copy, tmp_path / "again")  # nothing is lost of it
    with pytest.raises(ValueError, match="expected a Video-LLaVA with attention over time to drop, got none"):
        convert(copy, tmp_path / "third", drop_temporal=True)


def test_a_stock_config_without_hidden_act_is_warned_of_once(copy, tmp_path, caplog):
    convert(copy, tmp_path / "hf", drop_temporal=True)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["vision_config"]["hidden_act"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    checkpoint_module.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="vscan"):
        for _ in range(2):
            assert load_model(tmp_path / "hf", device="cpu").config.vision_config.hidden_act == "quick_gelu"
    (record,) = caplog.records
    assert "vision_config says no hidden_act: transformers takes quick_gelu" in record.getMessage()
    assert "\n" not in record.getMessage()
