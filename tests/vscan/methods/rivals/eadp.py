"""EADP's cases: given embeddings, whole models with a tiny CLIP, Qwen2.5-VL's merged tokens.

Published, padding and marks count as words, and quotas of crops are floored: the recorded embeddings of all positions
are put in by hand, and ours of the words compared with theirs; the quotas are a reference.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods.base import Layout, Views
from vscan.methods.eadp import EADP
from vscan.methods.shared.cover import cosines, cover
from vscan.methods.shared.question import Question, reader

from .common import CLIP, check_kept, model_of, qwen_question, recorded_questions, said, same

BASE = "llava15_vscan"
GRIDS = [(13, 18), (15, 11)]  # of the pictures of Qwen2.5-VL, in tokens


def cases(index: str, content: dict) -> dict[str, dict]:
    return {
        case["name"]: {**case, "texts": said(content, "eadp", "texts")}
        for key in ("cases", "qwen")
        for case in content.get(key, [])
    }


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if case["kind"] == "function":
        check_function(name, case, load_file(folder / "func.safetensors"))
        return
    recorded = load_file(folder / f"{name}.safetensors")
    if case["kind"] == "whole_model":
        check_llava(case, recorded, load_file(folder / f"vision_img{case['image']}.safetensors"))
    else:
        check_merged(case, recorded)


def picks_of(tokens: Tensor, weights: Tensor, num: int) -> Tensor:
    return cover((cosines(tokens) + 1) / 2 * weights.unsqueeze(1), num)


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    source = name.split("/")[0]
    keys = ("features", "image_embeds", "text_embeds", "text_seq")
    features, image, pooled, words = (recorded[f"{source}.{key}_int8"].float() for key in keys)
    num_views, num_tokens = image.shape[:2]
    grid = (round(num_tokens**0.5),) * 2
    questions = [Question(pooled, list(words), see=lambda features: image)] * num_views
    method = EADP(case["alpha"], case["beta"])
    weights = method.weights(questions, image, grid, together=case["split"] is not None)
    same(weights, recorded[f"{name}.importance"], 1e-5)
    found, selected, quota = (
        picks_of(features, weights, case["T"]),
        recorded[f"{name}.selected"],
        recorded[f"{name}.quota"],
    )
    for view, number in enumerate(quota.tolist()):
        assert found[view, :number].tolist() == selected[view, :number].tolist()
    if case["split"] is None:
        return
    assert case["split"] == [num_views]
    shares = weights.sum(dim=1) / weights.sum() * case["T"] * num_views
    assert quota.tolist() == shares.long().clamp(min=1).tolist()
    side, num = int((num_views - 1) ** 0.5), case["T"] * num_views
    layout = Layout((side, side), torch.ones(num_views, num_tokens, dtype=torch.bool))
    views = Views(features, features, {}, grid, lambda tokens: tokens, layout=layout, text=questions)
    kept = method.encode(views, num)
    most = picks_of(features, weights, num_tokens)
    ours = quota.long()
    for view in (shares - shares.floor()).sort(descending=True).indices[: num - int(ours.sum())].tolist():
        ours[view] += 1
    expected = [view * num_tokens + token for view in range(num_views) for token in most[view, : ours[view]].tolist()]
    assert kept.slots[0].tolist() == sorted(expected)
    assert kept.valid.all()


def check_llava(case: dict, recorded: dict[str, Tensor], vision: dict[str, Tensor]) -> None:
    key = next(key for key, text in case["texts"].items() if text == case["text"])
    question = reader("eadp", model_of(BASE), None, "clip", str(CLIP))([case["text"]])[0]
    pooled, words = vision[f"{key}.text_embeds"], vision[f"{key}.text_embeds_seq"]
    same(question.pooled, pooled, 1e-5)
    same(question.words[0], words[0, 1 : vision[f"{key}.clip_input_ids"].shape[1] - 1], 1e-5)
    published = Question(pooled, list(words), see=question.see)
    # Of the runs on a picture, whose powers differ, the last one left its importance.
    method, expected = EADP(case["alpha"], beta=1.0), vision[f"{key}.importance"]
    weights = method.weights([published], vision["image_embeds"], (24, 24), together=False)
    assert min((weights**beta - expected).abs().max() for beta in (1.0, 2.0)) < 1e-5
    fields = {"alpha": case["alpha"], "beta": case["beta"]}
    fields = {} if fields == {"alpha": 0.5, "beta": 1.0} else fields
    with recorded_questions("eadp", [published]):
        check_kept(case, recorded, "eadp", case["T"], clip=str(CLIP), text=[case["text"]], **fields)


def check_merged(case: dict, recorded: dict[str, Tensor]) -> None:
    """The published sign is negative."""
    question, tokens = qwen_question(recorded, case["image"])
    method = EADP(case["alpha"], flipped=True)
    weights = method.weights([question], tokens, GRIDS[case["image"]], together=False)
    same(weights[0], recorded["importance"], 1e-5)
    assert picks_of(tokens, weights, case["T"])[0].tolist() == recorded["selected"].tolist()
