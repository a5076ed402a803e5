"""What is recorded from the published code on LLaVA-NeXT (`golden/llavanext_vscan`, `golden/vispruner_next`).

The published decoder stage ranks the base crop alone, from a query inside the image: a bug that is not kept. Ours is
checked against a decoder that masks tokens instead of dropping them.
"""

import json
from dataclasses import dataclass

import pytest
import torch
from helpers import Injected, close, normalised, to_hugging_face
from pairwise import pairwise
from PIL import Image
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import vscan
from llava.eval.answering import Answering, Prompt
from llava.mm_utils import load_image, load_image_processor, process_images
from llava.model.builder import load_model
from vscan.compat import cache_of
from vscan.methods.vispruner import VisPruner
from vscan.models.llava_next import image_lengths

IMAGE_TOKEN, NUM_TOKENS, NUM_LAYERS = 3, 576, 8
NUM_NEW = 3  # where nothing is recorded
NUM_RECORDED = 6  # of the 16 that are
FORMATS = ["original", "hugging_face"]
VSCAN_IMAGES = [("gradient_500x375.png", (500, 375)), ("natural_300x420.png", (300, 420))]
VISPRUNER_IMAGES = [("wide_640x300.png", (640, 300)), ("natural_300x420.png", (300, 420))]


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "llavanext_vscan"


@pytest.fixture(scope="module")
def inputs(folder):
    return load_file(folder / "inputs.safetensors")


def loaded(folder):
    model = load_model(folder / "checkpoint", device="cpu")
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def original(folder):
    return loaded(folder)


@pytest.fixture(scope="module", params=FORMATS)
def model(request, original):
    return original if request.param == "original" else to_hugging_face(original, IMAGE_TOKEN)


def text_model(model):
    return model.model if hasattr(model, "encode_images") else model.model.language_model


def generate(model, rows, crops, sizes, **kwargs):
    """Greedy tokens for prompts of one batch: ids with -200, crops and (width, height) of every image."""
    options = {
        "max_new_tokens": NUM_RECORDED,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    options |= kwargs
    images = {"images": crops, "image_sizes": sizes}
    if not hasattr(model, "encode_images"):
        heights_first = torch.tensor([size[::-1] for size in sizes])
        images = {"pixel_values": pad_sequence(crops, batch_first=True), "image_sizes": heights_first}
        lengths = iter(image_lengths(model.base_model, heights_first, NUM_TOKENS)[0])
        rows = [[t for i in row for t in ([IMAGE_TOKEN] * next(lengths) if i == -200 else [i])] for row in rows]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return model.generate(ids, attention_mask=mask, **images, **options)


@pytest.mark.parametrize("image", range(2))
def test_crops_are_cut_as_published(folder, golden, inputs, original, image):
    name, _ = VSCAN_IMAGES[image]
    processor = load_image_processor(folder / "checkpoint" / "clip_tower")
    crops = process_images([load_image(golden / "images" / name)], processor, original.config)
    assert torch.equal(crops, normalised(inputs[f"pixel_u8_{image}"][0]))


@pytest.mark.parametrize("image", range(2))
@pytest.mark.parametrize("name", ["t96_L4_32", "t96_nollm", "t64_L4_full"])
def test_every_crop_keeps_the_recorded_tokens_and_features(folder, inputs, original, name, image):
    case = load_file(folder / f"{name}_img{image}.safetensors")
    num = int(case["index_mask"].sum(1)[0])
    with vscan.reduce(original, visual_tokens=num), torch.no_grad():
        views, kept = original.encode_images(normalised(inputs[f"pixel_u8_{image}"][0]))
    assert torch.equal(kept, case["index_mask"])
    close(views[kept], case["merged"][kept])


@pytest.mark.parametrize(
    ("name", "image", "model"),
    pairwise(["t96_L4_32", "t96_nollm", "t64_L4_full", "t576_dense"], range(2), FORMATS),
    indirect=["model"],
    scope="module",
)
def test_embeddings_and_without_pruning_all_tokens_are_the_recorded_ones(folder, inputs, model, name, image):
    case = load_file(folder / f"{name}_img{image}.safetensors")
    num = int(case["index_mask"].sum(1)[0])
    seen = []
    handle = text_model(model).layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    crops, size = normalised(inputs[f"pixel_u8_{image}"][0]), VSCAN_IMAGES[image][1]
    with vscan.reduce(model, visual_tokens=num) as reduction:
        output = generate(model, inputs["input_ids"].tolist(), [crops], [size])
    handle.remove()
    close(seen[0], case["inputs_embeds"])
    length = case["inputs_embeds"].shape[1]
    assert [cache_of(output).get_seq_length(layer) for layer in range(NUM_LAYERS)] == [
        length + NUM_RECORDED - 1
    ] * NUM_LAYERS
    assert reduction.stats().rows[0].stages == [[0, length - 32]]
    if name in ("t96_nollm", "t576_dense"):
        assert output.sequences[0, -NUM_RECORDED:].tolist() == case["generated"][:NUM_RECORDED].tolist()
        close(torch.cat(output.logits), case["scores"][:NUM_RECORDED])


class Masking:
    """One prompt through the dense decoder, where pruned tokens are masked from their layer on instead of dropped.

    Args:
        embeds: what layer 0 sees of it, [1, L, D].
        visual: bool [L], its visual columns.
        budgets: {layer: visual tokens}.
    """

    def __init__(self, model, embeds, visual, budgets):
        self.model, self.embeds, self.visual, self.budgets = model, embeds, visual, budgets

    def logits(self, new):
        """Logits of the last column of prompt + new tokens, and the prompt's columns that the last layer saw."""
        text, length = text_model(self.model), self.embeds.shape[1]
        hidden = torch.cat((self.embeds, text.embed_tokens(torch.tensor([new], dtype=torch.long))), dim=1)
        total = hidden.shape[1]
        visual = torch.cat((self.visual, torch.zeros(len(new), dtype=torch.bool)))
        alive, causal = torch.ones(total, dtype=torch.bool), torch.ones(total, total, dtype=torch.bool).tril()
        for index, layer in enumerate(text.layers):
            rotary = text.rotary_emb(hidden, (alive.cumsum(0) - 1)[None])
            if index in self.budgets:
                attention, normed = layer.self_attn, layer.input_layernorm(hidden)
                q, k = (
                    project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
                    for project in (attention.q_proj, attention.k_proj)
                )
                q, k = apply_rotary_pos_emb(q, k, *rotary)
                row = (q[0, :, length - 1, None] @ k[0].transpose(1, 2))[:, 0] * attention.scaling
                row = row.masked_fill(~(alive & causal[length - 1]), -torch.inf).softmax(-1).mean(0)
                row = row.masked_fill(~(visual & alive), -1)
                alive = alive & ~visual
                alive[row.argsort(descending=True, stable=True)[: self.budgets[index]]] = True
                rotary = text.rotary_emb(hidden, (alive.cumsum(0) - 1)[None])
            mask = torch.zeros(total, total).masked_fill(~(causal & alive), torch.finfo(torch.float32).min)
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotary)
        return self.model.lm_head(text.norm(hidden)[0, -1]), alive[:length].nonzero()[:, 0].tolist()


def test_the_decoder_ranks_every_placeholder_of_all_crops_and_images(inputs, model):
    crops = [normalised(inputs[f"pixel_u8_{image}"][0]) for image in range(2)]
    sizes = [size for _, size in VSCAN_IMAGES]
    one = inputs["input_ids"][0].tolist()
    rows = [one, [*one[:20], -200, *one[20:]], [one[0], *one[15:]]]  # one image, two, none
    of_rows, num_views = [[0], [1, 0], []], [5, 3 + 5, 0]

    def run(numbers, **reduction):
        images = [image for number in numbers for image in of_rows[number]]
        given = [rows[number] for number in numbers], [crops[i] for i in images], [sizes[i] for i in images]
        seen = []
        handle = text_model(model).layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
        with vscan.reduce(model, visual_tokens=48, **reduction) as handle_of_reduction:
            output = generate(model, *given, max_new_tokens=NUM_NEW)
        handle.remove()
        return output, handle_of_reduction, seen[0]

    batch, reduction, _ = run([0, 1, 2], layers={3: 20, 5: 6})
    stats = reduction.stats().rows
    assert stats[2].stages == [[0, 0], [3, 0], [5, 0]]
    for number in range(2):
        _, alone, embeds = run([number])
        visual = alone.last.segments[0].visual[0]
        budgets = {3: num_views[number] * 20, 5: num_views[number] * 6}
        assert stats[number].stages == [[0, int(visual.sum())], *map(list, budgets.items())]
        oracle, new = Masking(model, embeds, visual, budgets), batch.sequences[number, -NUM_NEW:].tolist()
        with torch.no_grad():
            for step in range(NUM_NEW):
                logits, seen = oracle.logits(new[:step])
                close(batch.logits[step][number], logits)
                assert int(logits.argmax()) == new[step]
        kept = torch.tensor([column for column in seen if visual[column]])
        arrived = torch.tensor(stats[number].kept[0])
        assert stats[number].kept[2] == arrived[visual.cumsum(0)[kept] - 1].tolist()


# ------------------------------------------------------------------------------------------------------- VisPruner


@dataclass(frozen=True)
class InjectedPruner(Injected):
    merged: bool = False
    anyres_resolution = (672, 672)


@pytest.fixture(scope="module")
def pruner_folder(golden):
    return golden / "vispruner_next"


@pytest.fixture(scope="module")
def pruner(pruner_folder):
    return loaded(pruner_folder)


PRUNER_CASES = [f"{name}_img{image}" for name in ("t128_r100", "t512_r50", "t32_r75") for image in range(2)]
STRICT = {"t128_r100_img0", "t128_r100_img1", "t512_r50_img1"}


@pytest.mark.parametrize("name", PRUNER_CASES)
def test_vispruner_gives_the_recorded_generation_at_its_fixed_resolution(
    pruner_folder, golden, pruner, name, monkeypatch
):
    cases = {case["name"]: case for case in json.loads((pruner_folder / "cases.json").read_text())["cases"]}
    assert set(cases) == set(PRUNER_CASES)
    assert {name for name, case in cases.items() if case["strict"]} == STRICT
    case, recorded = cases[name], load_file(pruner_folder / f"{name}.safetensors")
    inputs = load_file(pruner_folder / "inputs.safetensors")
    file, size = VISPRUNER_IMAGES[case["image_index"]]
    processor = load_image_processor(pruner_folder / "checkpoint" / "clip_tower")
    settings = type("Settings", (), {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [(672, 672)]})
    crops = process_images([load_image(golden / "images" / file)], processor, settings)
    assert torch.equal(crops, normalised(inputs[f"pixel_u8_{case['image_index']}"][0]))
    method = {"method": "vispruner", "important_ratio": case["important_ratio"]}
    if name not in STRICT:
        monkeypatch.setitem(vscan.METHODS, "injected", InjectedPruner)
        slots = tuple(tuple(mask.nonzero()[:, 0].tolist()) for mask in recorded["index_mask"])
        method = {"method": "injected", "slots": slots}
    seen = []
    handle = pruner.model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with vscan.reduce(pruner, visual_tokens=case["visual_token_num"], **method) as reduction:
        output = generate(pruner, inputs["input_ids"].tolist(), [crops], [size])
    handle.remove()
    assert reduction.stats().rows[0].stages == [[0, case["reported_token_count"]]]
    close(seen[0], recorded["inputs_embeds"])
    assert output.sequences[0].tolist() == recorded["generated"][:NUM_RECORDED].tolist()
    close(torch.cat(output.logits), recorded["scores"][:NUM_RECORDED])


# ---------------------------------------------------------------------------------------------------- both formats

SHAPES = [(672, 336), (336, 672), (672, 672), (1008, 336), (336, 1008), (336, 336), (2000, 90), (90, 2000), (37, 41)]


# What packs crops is the same for every method: by default one goes through every kind of shape, others through some.
@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        ("dense", SHAPES[:1]),
        ("vscan", [SHAPES[2], SHAPES[4], *SHAPES[6:]]),
        ("vispruner", SHAPES[:2]),
        pytest.param("dense", SHAPES, marks=pytest.mark.slow),
        pytest.param("vscan", SHAPES, marks=pytest.mark.slow),
        pytest.param("vispruner", SHAPES, marks=pytest.mark.slow),
    ],
    ids=["dense some", "vscan some", "vispruner some", "dense", "vscan", "vispruner"],
)
def test_both_formats_keep_the_same_tokens_and_say_the_same_at_every_shape(
    folder, original, method, shapes, monkeypatch
):
    """Every resolution of the grid list, the size of a single crop, very wide, very tall, tiny."""
    # VisPruner's own resolution and packing are those of the original format alone.
    monkeypatch.setattr(VisPruner, "anyres_resolution", None)
    settings = {
        "dense": {},
        "vscan": {"visual_tokens": 24, "layers": {4: 8}},
        "vispruner": {"visual_tokens": 24, "method": "vispruner", "important_ratio": 1.0},
    }[method]
    processor = load_image_processor(folder / "checkpoint" / "clip_tower")
    prompts = []
    for number, size in enumerate(shapes):
        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(number))
        image = Image.fromarray(noise.to(torch.uint8).numpy())
        prompts.append(
            Prompt([1, 20 + number, -200, 30, 31], process_images([image], processor, original.config), size)
        )
    found = []
    for model in (original, to_hugging_face(original, IMAGE_TOKEN)):
        with vscan.reduce(model, **settings) as reduction:
            answering = Answering(Ids(), model, reduction, max_new_tokens=2, do_sample=False)
            answers, kept = [], []
            for start in range(0, len(prompts), 3):
                answers += answering(prompts[start : start + 3])
                kept += [row.kept for row in reduction.stats().rows]
        found.append(([(answer.text, answer.stats) for answer in answers], kept))
    assert found[0] == found[1]
    # A resolution of the list fills its tiles: 576 of the base crop, and a newline after every row of the tiles.
    for (w, h), (_, stats) in zip(shapes, found[0][0], strict=True):
        assert (w, h) not in SHAPES[:5] or stats["visual_tokens"] == 576 + (w // 14) * (h // 14) + h // 14


class Ids:
    """A tokenizer that shows ids."""

    def batch_decode(self, rows, **kwargs):
        return [" ".join(map(str, row.tolist())) for row in rows]
