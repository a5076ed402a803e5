"""Everything recorded from the published VScan code on Qwen2.5-VL (`golden/qwen25vl_vscan`), by both ways to run it."""

import json
from pathlib import Path

import pytest
import torch
from helpers import close
from pairwise import pairwise
from qwen_helpers import normalised_patches
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

import vscan
from qwen.model.qwen2_5_vl_custom import Qwen2_5_VLForConditionalGeneration_X
from vscan.compat import CACHE, cache_of
from vscan.select.merge import merge
from vscan.select.scan import scan

NUM_LAYERS, SPAN, IMAGE_TOKEN = 8, 10, 500
GRIDS = [(13, 18), (15, 11)]  # of the two images, in tokens
SELECTION = Path(__file__).parents[1] / "golden" / "qwen25vl_vscan" / "selection.safetensors"  # a few of the vectors
LOCAL, GLOBAL = 1, -1  # the first block with full attention, and the last one
SETTINGS = {  # name: (image_token_ratio, {layer: ratio})
    "r0167_L4_0333": (0.167, {4: 0.333}),
    "r06_L4_067": (0.6, {4: 0.67}),
    "r025_nollm": (0.25, {}),
    "r1_L2_01": (1.0, {2: 0.1}),
    "r1_dense_patched": (1.0, {}),
}
CASES = [(name, image) for name in SETTINGS for image in range(2)]
SELECTED = [(name, image) for name, image in CASES if SETTINGS[name][0] < 1]
WAYS = ["stock", "X"]
CLASSES = [Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration_X]


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "qwen25vl_vscan"


@pytest.fixture(scope="module")
def inputs(folder):
    """For each image the keywords of a call."""
    stored = load_file(folder / "inputs.safetensors")
    return [
        {
            "input_ids": stored[f"input_ids_{image}"],
            "attention_mask": stored[f"attention_mask_{image}"],
            "pixel_values": normalised_patches(stored[f"pixel_u8_{image}"]),
            "image_grid_thw": stored[f"image_grid_thw_{image}"],
            "mm_token_type_ids": (stored[f"input_ids_{image}"] == IMAGE_TOKEN).int(),
        }
        for image in range(2)
    ]


@pytest.fixture(scope="module")
def models(folder):
    loaded = [cls.from_pretrained(folder / "checkpoint").eval() for cls in CLASSES]
    for model in loaded:
        model.generation_config.eos_token_id = None  # as recorded: 16 tokens always come out
    return loaded


@pytest.fixture(params=WAYS)
def model(request, models):
    return models[WAYS.index(request.param)]


def generate(model, inputs):
    options = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **options)


class Record:
    """What every layer was given in every step of a generation, and what the decoder's rankings and method were."""

    def __init__(self, model, reduction, monkeypatch):
        self.hidden, self.cached, self.positions, self.rankings, self.rows = [], [], [], [], None
        text, method = model.model.language_model, reduction.method
        self.handles = [text.rotary_emb.register_forward_hook(self._rotary, with_kwargs=True)]
        self.handles += [layer.register_forward_pre_hook(self._layer, with_kwargs=True) for layer in text.layers]
        encode, scores = type(method).encode, type(method).scores

        def seen_encode(method, views, num):
            self.views = views
            return encode(method, views, num)

        def seen_scores(method, rows):
            self.rankings.append(scores(method, rows))
            return self.rankings[-1]

        monkeypatch.setattr(type(method), "encode", seen_encode)
        monkeypatch.setattr(type(method), "scores", seen_scores)

    def _rotary(self, module, args, kwargs, output):
        self.current = kwargs["position_ids"]

    def _layer(self, layer, args, kwargs):
        index = layer.self_attn.layer_idx
        if index == 0:
            for steps in (self.hidden, self.cached, self.positions):
                steps.append([])
        self.hidden[-1].append(args[0])
        self.cached[-1].append(kwargs[CACHE].get_seq_length(index))
        self.positions[-1].append(self.current)

    def remove(self):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize(("name", "image"), SELECTED)
def test_scan_keeps_the_recorded_tokens(name, image):
    recorded = load_file(SELECTION)
    scores = [recorded[f"{score}_{image}"][None] for score in ("score_local", "score_global")]
    num = int(SETTINGS[name][0] * scores[0].shape[1])
    local, best = scan(*scores, GRIDS[image], num, window=4, capped=True)
    assert local[0].tolist() == recorded[f"{name}_local_indices_{image}"].tolist()
    assert best[0].tolist() == recorded[f"{name}_global_indices_{image}"].tolist()


@pytest.mark.parametrize(("name", "image"), SELECTED)
def test_the_sorted_indices_and_the_zeroed_scores_are_the_recorded_ones(folder, name, image):
    vision, case = (load_file(folder / f"{file}_img{image}.safetensors") for file in ("vision", name))
    scores = vision["score_local"][None], vision["score_global"][None]
    kept = scan(*scores, GRIDS[image], len(case["keep_indices"]), window=4, capped=True)
    assert torch.cat(kept, dim=1)[0].sort().values.tolist() == case["keep_indices"].tolist()
    zeroed = vision["score_global"].index_fill(0, kept[0][0], 0)
    assert torch.equal(zeroed, case["score_global_zeroed"])


@pytest.mark.parametrize(("name", "image"), SELECTED)
def test_merging_gives_the_recorded_embeddings(folder, name, image):
    vision, case = (load_file(folder / f"{file}_img{image}.safetensors") for file in ("vision", name))
    merged = merge(vision["image_embeds"][None], case["keep_indices"][None])[0]
    close(merged, case["merged_embeds"])


@pytest.mark.parametrize(("name", "image", "model"), pairwise(SETTINGS, range(2), WAYS), indirect=["model"])
def test_a_generation_is_the_recorded_one(folder, inputs, model, name, image, monkeypatch):
    vision, case = (load_file(folder / f"{file}_img{image}.safetensors") for file in ("vision", name))
    ratio, layers = SETTINGS[name]
    with vscan.reduce(model, visual_tokens=ratio, layers=layers) as reduction:
        record = Record(model, reduction, monkeypatch)
        output = generate(model, inputs[image])
        record.remove()
    assert output.sequences[0, -16:].tolist() == case["generated"].tolist()
    close(torch.cat(output.logits), case["logits"])
    num_tokens = len(vision["image_embeds"])
    kept = torch.arange(num_tokens)
    if ratio < 1:
        kept = case["keep_indices"]
        for layer, scores in ((LOCAL, "score_local"), (GLOBAL, "score_global")):
            close(record.views.rows[layer][0], vision[scores])
        close(record.views.features[0], vision["image_embeds"])

    # What the decoder saw.
    length = inputs[image]["input_ids"].shape[1]
    columns = [*range(SPAN), *(SPAN + kept).tolist(), *range(SPAN + num_tokens, length)]
    assert reduction.kept(0)[0].tolist() == columns
    close(record.hidden[0][0], case["inputs_embeds"])
    assert torch.equal(record.positions[0][0], case["position_ids"])
    if "merged_embeds" in case:
        merged = record.hidden[0][0][0, SPAN : SPAN + len(kept)]
        close(merged, case["merged_embeds"])

    # What the pruning stage ranked and kept, relative to what arrived there.
    for stage, layer in enumerate(layers):
        ranked = record.rankings[stage][0, SPAN : SPAN + len(kept)]
        close(ranked, case[f"prune{stage}_scores"])
        order = case[f"prune{stage}_topk_order"]
        assert ranked.argsort(descending=True)[: len(order)].tolist() == order.tolist()
        stays = case[f"prune{stage}_kept_sorted"]
        assert reduction.stats().rows[0].stages[stage + 1] == [layer, len(stays)]
        assert reduction.stats().rows[0].kept[stage + 1] == kept[stays].tolist()
        assert torch.equal(record.positions[0][layer - 1], case[f"prune{stage}_positions_before"])
        assert torch.equal(record.positions[0][layer], case[f"prune{stage}_positions_after"])

    # Cache lengths and positions, per layer, in the prompt and in every step after it.
    assert torch.equal(model.model.rope_deltas, case["rope_deltas"])
    lengths = case["kv_len_prefill"]
    assert [hidden.shape[1] for hidden in record.hidden[0]] == lengths.tolist()
    assert record.cached[1:] == case["decode_cache_len_before"].tolist()
    steps = [[positions.flatten().tolist() for positions in step] for step in record.positions[1:]]
    assert steps == case["decode_positions"].tolist()
    cache = cache_of(output)
    assert [cache.get_seq_length(layer) for layer in range(NUM_LAYERS)] == (lengths + 15).tolist()


# Every setting's recorded generation comes out of both ways, of one on each image.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "r0167_L4_0333" else pytest.mark.slow) for name in SETTINGS]
)
def test_both_ways_give_the_same_bits(models, inputs, name):
    ratio, layers = SETTINGS[name]
    outputs = []
    for model in models:
        with vscan.reduce(model, visual_tokens=ratio, layers=layers):
            outputs.append(generate(model, inputs[0]))
    assert torch.equal(*(output.sequences for output in outputs))
    assert all(torch.equal(*steps) for steps in zip(*(output.logits for output in outputs), strict=True))


@pytest.mark.parametrize("image", range(2))
def test_without_a_reduction_and_with_an_empty_one_it_is_the_stock_model(folder, model, inputs, image):
    case = load_file(folder / f"stock_dense_img{image}.safetensors")
    dense = generate(model, inputs[image])
    with vscan.reduce(model):
        empty = generate(model, inputs[image])
    assert dense.sequences[0, -16:].tolist() == case["generated"].tolist()
    close(torch.cat(dense.logits), case["logits"])
    assert torch.equal(torch.cat(empty.logits), torch.cat(dense.logits))


def test_cases_are_all_covered(folder):
    names = {(case["name"], case["image_index"]) for case in json.loads((folder / "cases.json").read_text())["cases"]}
    assert names == set(CASES)
