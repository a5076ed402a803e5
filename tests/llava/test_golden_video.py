"""What is recorded of Video-LLaVA (`golden/video_llava`, `golden/video_llava_hf`), in both formats.

Every case of the index files is tried. GOLDEN_VIDEO names another folder that holds a `video_llava` and a
`video_llava_hf` of the same layout; models always come from the recorded data beside the project. Which clips and
images a case shows is told by the embeddings that are recorded of it.
"""

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vscan
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_model
from vscan.compat import cache_of, pixels_of_images
from vscan.methods.base import Needs
from vscan.methods.sparsevlm import SparseVLM, raters
from vscan.models.towers import run_tower

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
DATA = Path(os.environ.get("GOLDEN_VIDEO") or GOLDEN)
ORIGINAL, STOCK = DATA / "video_llava", DATA / "video_llava_hf"
if not (GOLDEN / "video_llava").is_dir():
    pytest.skip(f"no recorded data: expected {GOLDEN.name} in `shared` beside the project", allow_module_level=True)

NUM_FRAMES, SIDE, FRAME, NUM_NEW = 8, 224, 257, 16
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def index(folder: Path) -> dict:
    """{name: what is said of it} of a folder's cases; none where the folder is not there."""
    file = folder / "cases.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def cases(kind: str) -> list:
    """(folder, case) of dense runs, as published and without attention over time; `kind` is "vision_" or "case_"."""
    folders = ("dense", "dense_notime")
    return [(folder, name) for folder in folders for name in index(ORIGINAL / folder) if name.startswith(kind)]


def stock_cases(kind: str) -> list[str]:
    return sorted(file.stem for file in (STOCK / "dense").glob(f"{kind}*.safetensors"))


def close(got: torch.Tensor, expected: torch.Tensor, atol: float = 2e-4, rtol: float = 0.0) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=rtol)


# ------------------------------------------------------------------------------------------------- models and pixels


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function from a folder of cases to the model that they are of."""

    def without_time() -> Path:
        folder, recorded = tmp_path_factory.mktemp("notime"), GOLDEN / "video_llava"
        copied(recorded / "towers_notime/LanguageBind_Video_merge", folder / "towers/LanguageBind_Video_merge")
        copied(recorded / "towers/LanguageBind_Image", folder / "towers/LanguageBind_Image")
        return copied(recorded / "tiny-video-llava", folder / "tiny-video-llava")

    @cache
    def model_of(folder: str):
        places = {
            "dense": lambda: GOLDEN / "video_llava" / "tiny-video-llava",
            "dense_notime": without_time,
            "stock": lambda: GOLDEN / "video_llava_hf" / "tiny-video-llava-hf",
        }
        model = load_model(places[folder](), device="cpu", dtype=torch.float32)
        model.generation_config.eos_token_id = None
        return model

    return model_of


@cache
def pixels(name: str) -> torch.Tensor:
    """A source as the towers get it: a clip [3, 8, 224, 224] or an image [3, 224, 224]."""
    file = sources()[name]
    stored = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    frames = (stored.unflatten(0, (-1, SIDE)).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    return frames.transpose(0, 1).contiguous() if file.parent.name == "frames" else frames[0]


@cache
def sources() -> dict[str, Path]:
    """{name: file} of the clips and images that need no resizing; those beside the project serve where others lack."""
    whole = {"frames": (SIDE, SIDE * NUM_FRAMES), "images": (SIDE, SIDE)}
    files = [
        file for data in (GOLDEN / "video_llava", ORIGINAL) for kind in whole for file in (data / kind).glob("*.png")
    ]
    return {file.stem: file for file in files if Image.open(file).size == whole[file.parent.name]}


@cache
def encoded(model) -> dict[str, torch.Tensor]:
    """{source: what the model makes of it}, projected."""
    with torch.no_grad():
        return {name: model.embed_images([pixels(name)]).pooler_output[0] for name in sources()}


def shown(model, case: dict) -> list[str]:
    """The sources that a recorded prompt shows, in order: those whose embeddings stand at its placeholders."""
    found, column, skip = [], 0, 0
    for token in case["input_ids"].tolist():
        if token != IMAGE_TOKEN_INDEX:
            column += 1
            continue
        if not skip:
            rows = case["inputs_embeds"][0, column : column + 64]
            distance = {name: (rows - each[: len(rows)]).abs().max() for name, each in encoded(model).items()}
            found.append(min(distance, key=distance.get))
            skip = NUM_FRAMES if pixels(found[-1]).ndim == 4 else 1
        column += FRAME if pixels(found[-1]).ndim == 4 else FRAME - 1
        skip -= 1
    return found


def copied(folder: Path, target: Path) -> Path:
    """Copy a folder's files, which may be written over."""
    target.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copyfile(file, target / file.name)
    return target


class Seen:
    """What the decoder's layers are given, and what its last norm gives, in the prompt's own pass."""

    def __init__(self, text_model):
        self.inputs, self.text_model = [], text_model

    def __enter__(self):
        def keep(module, args):
            if len(self.inputs) < len(self.text_model.layers):
                self.inputs.append(args[0])

        self.handles = [layer.register_forward_pre_hook(keep) for layer in self.text_model.layers]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def generate(model, ids: torch.Tensor, **images):
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids[None], **images, **options)


def is_recorded(output, case: dict) -> None:
    close(torch.cat(output.logits), case["scores"])
    close(output.logits[0][0], case["prefill_logits_last"])
    assert output.sequences[0, -NUM_NEW:].tolist() == case["generated"].tolist()


# ------------------------------------------------------------------------------------------------- the original format


def test_there_are_cases():
    assert cases("vision_")
    assert cases("case_")
    assert sources()


@pytest.mark.parametrize(("folder", "name"), cases("vision_"))
@torch.no_grad()
def test_features_rows_and_projected_values_are_the_recorded_ones(models, folder, name):
    model, recorded = models(folder), load_file(ORIGINAL / folder / f"{name}.safetensors")
    said, given = index(ORIGINAL / folder)[name], pixels(name.removeprefix("vision_"))
    assert list(given.shape) == said["shape"]
    assert hashlib.sha256(given.numpy().tobytes()).hexdigest() == said["pixel_sha256_f32"]
    tower = (model.model.video_tower if given.ndim == 4 else model.model.vision_tower).vision_tower
    views = given.transpose(0, 1) if given.ndim == 4 else given[None]
    num_layers, heads = tower.config.num_hidden_layers, tower.config.num_attention_heads
    seen = run_tower(tower, views, -2, Needs(rows=tuple(range(num_layers)), keys=(-2,)))
    close(seen.hidden, recorded["features"], 1e-4)
    rows = torch.stack([seen.rows[layer] for layer in range(num_layers)])
    close(rows, recorded["cls_rows"][:, :, 1:], 0, 1e-4)
    query, key = (each.unflatten(-1, (heads, -1)) for each in (seen.queries[-2], seen.keys[-2]))
    weights = (torch.einsum("vhd,vnhd->vhn", query, key) * query.shape[-1] ** -0.5).softmax(-1)
    close(weights, recorded["cls_rows_heads_m2"], 1e-6, 1e-4)
    for layer, cls in enumerate(recorded["cls_hidden_per_layer"]):
        close(run_tower(tower, views, layer).hidden[:, 0], cls, 1e-4)
    projected = model.embed_images([given]).pooler_output[0]
    close(projected, recorded["projected"].flatten(0, 1), 1e-4)


@pytest.mark.parametrize(("folder", "name"), cases("case_"))
def test_a_dense_prompt_gives_the_recorded_embeddings_hidden_states_logits_and_tokens(models, folder, name):
    model, case = models(folder), load_file(ORIGINAL / folder / f"{name}.safetensors")
    images = [pixels(source) for source in shown(model, case)] or None
    with Seen(model.model) as seen:
        output = generate(model, case["input_ids"], images=images)
    close(seen.inputs[0], case["inputs_embeds"], 1e-4)
    assert seen.inputs[0].shape[1] == index(ORIGINAL / folder)[name]["embeds_len"]
    close(torch.stack([hidden[0, -1] for hidden in seen.inputs]), case["last_hidden_per_layer"][:-1])
    is_recorded(output, case)


@pytest.mark.parametrize("name", index(ORIGINAL / "fastervlm"))
def test_fastervlm_keeps_the_recorded_patches_of_every_frame(models, name):
    model, case = models("dense"), load_file(ORIGINAL / "fastervlm" / f"{name}.safetensors")
    prompt = load_file(ORIGINAL / "dense" / f"case_{name.partition('_')[2]}.safetensors")
    said, images = index(ORIGINAL / "fastervlm")[name], [pixels(source) for source in shown(model, prompt)]
    num_frames, num = case["kept_patch_idx"].shape
    with vscan.reduce(model, "fastervlm", visual_tokens=num, frame_cls="drop") as reduction:
        output = generate(model, prompt["input_ids"], images=images)
    (row,) = reduction.stats().rows
    kept = torch.tensor(row.kept[0]).view(num_frames, num) - torch.arange(num_frames).unsqueeze(1) * FRAME - 1
    assert kept.tolist() == case["kept_patch_idx"].tolist()
    assert row.stages == [[0, said["tokens"]]]
    lengths = [cache_of(output).get_seq_length(layer) - NUM_NEW + 1 for layer in range(reduction.fitted.num_layers)]
    assert lengths == [said["logits_len"]] * len(lengths)
    is_recorded(output, case)


@pytest.mark.parametrize("name", index(ORIGINAL / "sparsevlm"))
def test_sparsevlm_finds_the_recorded_raters_and_scores(models, name, monkeypatch):
    model, case = models("dense"), load_file(ORIGINAL / "sparsevlm" / f"{name}.safetensors")
    prompt = load_file(ORIGINAL / "dense" / f"case_{name}.safetensors")
    said, found, ratings = index(ORIGINAL / "sparsevlm")[name], [], SparseVLM.ratings

    def keep(self, stage, asking):
        found.append((stage, ratings(self, stage, asking)))
        return found[-1][1]

    monkeypatch.setattr(SparseVLM, "ratings", keep)
    images = [pixels(source) for source in shown(model, prompt)]
    with vscan.reduce(model, "sparsevlm", layers={said["layer"] + 1: 16}):
        generate(model, prompt["input_ids"], images=images)
    ((stage, scores),) = found
    start, behind = said["v_token_start"], said["text_token_start"]
    assert stage.visual[0].nonzero()[:, 0].tolist() == list(range(start, start + said["v_token_num"]))
    text = stage.entry.text[0].nonzero()[:, 0]
    asking = text[raters(stage.entry)[0, : len(text)]] - behind
    assert asking.tolist() == case["text_rater_idx"].tolist()
    close(scores[0, stage.visual[0]], case["score"], 1e-7, 1e-3)


# ------------------------------------------------------------------------------------------------ Hugging Face's format


def stock_inputs(name: str, models) -> tuple[dict, dict]:
    """A recorded case, and the pixels of its prompt: that of the original format with the same ids and name."""
    case = load_file(STOCK / "dense" / f"{name}.safetensors")
    stem = name.removesuffix("_quick_gelu")
    folder = next(f for f in ("dense_notime", "dense") if (ORIGINAL / f / f"{stem}.safetensors").is_file())
    prompt = load_file(ORIGINAL / folder / f"{stem}.safetensors")
    found, model = [pixels(source) for source in shown(models(folder), prompt)], models("stock")
    clips, images = ([each for each in found if each.ndim == ndim] for ndim in (4, 3))
    given = {"pixel_values_videos": torch.stack(clips).transpose(1, 2)} if clips else {}
    if images:
        given[pixels_of_images(model.base_model)] = torch.stack(images)
    return case, given


@pytest.mark.parametrize("name", stock_cases("vision_"))
@torch.no_grad()
def test_a_stock_model_gives_the_recorded_projected_values_and_rows(models, name):
    model, recorded = models("stock").base_model, load_file(STOCK / "dense" / f"{name}.safetensors")
    clip = pixels(name.removeprefix("vision_")).transpose(0, 1)
    num_layers = model.config.vision_config.num_hidden_layers
    seen = run_tower(model.video_tower, clip, -2, Needs(rows=tuple(range(num_layers))))
    close(model.multi_modal_projector(seen.hidden), recorded["projected"], 1e-4)
    close(model.get_video_features(clip[None]).pooler_output, recorded["projected"], 1e-4)
    rows = torch.stack([seen.rows[layer] for layer in range(num_layers)])
    close(rows, recorded["cls_rows"][:, :, 1:], 0, 1e-4)


@pytest.mark.parametrize("name", stock_cases("case_"))
def test_a_stock_model_gives_the_recorded_logits_and_tokens(models, name, tmp_path):
    case, given = stock_inputs(name, models)
    model = models("stock")
    if name.endswith("_quick_gelu"):
        folder = copied(GOLDEN / "video_llava_hf" / "tiny-video-llava-hf", tmp_path / "quick")
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["hidden_act"] = "quick_gelu"
        (folder / "config.json").write_text(json.dumps(config))
        model = load_model(folder, device="cpu", dtype=torch.float32)
        model.generation_config.eos_token_id = None
    is_recorded(generate(model, case["input_ids"], **given), case)
    # A reduction that keeps all is the dense model.
    with vscan.reduce(model, visual_tokens=1.0, layers={4: 1.0}):
        is_recorded(generate(model, case["input_ids"], **given), case)
