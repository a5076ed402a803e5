"""CDPruner's cases: given embeddings, whole models with a tiny CLIP, crop by crop, Qwen2.5-VL's merged tokens.

Published, relevance is scaled over a batch and over all crops, long questions are cut without marks, and where the rank
is exhausted tokens come twice: the first is put in by hand, the embeddings recorded for the second, and of the third
what comes before.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from vscan.methods.cdpruner import CDPruner, scaled, select
from vscan.methods.shared.cover import cosines
from vscan.methods.shared.question import Question, reader

from .common import (
    CLIP,
    NEXT,
    check_crops,
    check_kept,
    crops_of,
    model_of,
    qwen_question,
    recorded_questions,
    said,
    same,
)

BASE = "llava15_vscan"


def cases(index: str, content: dict) -> dict[str, dict]:
    """By name; those of `rank_exhausted` lie in a folder of their own."""
    found = {
        f"{'rank_' * (key == 'rank_exhausted')}{entry['name']}": {
            **entry,
            "list": key,
            "texts": said(content, "cdpruner", "texts"),
        }
        for key, entries in content.items()
        if isinstance(entries, list)
        for entry in entries
    }
    return found


def check(index: str, name: str, case: dict, folder: Path) -> None:
    exhausted = case["list"] == "rank_exhausted"
    if case["kind"] == "function":
        check_function(name, case, load_file(folder / "func.safetensors"))
        return
    recorded = load_file((folder / "rank" if exhausted else folder) / f"{case['name']}.safetensors")
    if case["kind"] == "function_qwen25vl":
        check_merged(case, recorded)
    elif case["kind"] == "whole_model_next":
        check_next(case, recorded)
    elif exhausted:
        check_exhausted(case, recorded, load_file(folder / "rank" / f"vision_img{case['image']}.safetensors"))
    else:
        check_llava(case, recorded, load_file(folder / f"vision_img{case['image']}.safetensors"))


def over_all(scores: Tensor) -> Tensor:
    """Relevance scaled over a whole batch, as published."""
    return (scores - scores.min() + 1e-6) / (scores.max() - scores.min())


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    source = name.split("/")[0]
    features, image, text = (
        recorded[f"{source}.{key}_int8"].float() for key in ("features", "image_embeds", "text_embeds")
    )
    questions = [Question(text, [text], see=lambda features: features)] * case["B"]
    scores = CDPruner().likeness(questions, image)
    scale = scaled if case["B"] == 1 else over_all
    same(scale(scores), recorded[f"{source}.relevance"], 1e-5)
    found = select(cosines(features), recorded[f"{source}.relevance"], case["kept"])
    assert found.tolist() == recorded[f"{name}.selected"].tolist()
    assert select(cosines(features), scale(scores), case["kept"]).tolist() == found.tolist()


def check_question(case: dict, recorded: dict[str, Tensor]) -> str | None:
    """The recorded embeddings of a text are ours, but for one of several segments; its key in the recorded ones."""
    key = next(key for key, text in case["texts"].items() if text == case["text"])
    model = model_of(BASE)
    question = reader("cdpruner", model, None, "clip", str(CLIP))([case["text"]])[0]
    expected = recorded[f"{key}.text_embeds_normalised"]
    if case["text_segments"] == 1:
        same(normalize(question.pooled, dim=-1), expected, 1e-5)
    assert question.pooled.shape == expected.shape
    return key


def check_llava(case: dict, recorded: dict[str, Tensor], vision: dict[str, Tensor]) -> None:
    key = check_question(case, vision)
    pooled = vision[f"{key}.text_embeds_normalised"]
    whole = case["text_segments"] == 1
    with nullcontext() if whole else recorded_questions("cdpruner", [Question(pooled, list(pooled.unsqueeze(1)))]):
        check_kept(case, recorded, "cdpruner", case["T"], clip=str(CLIP), text=[case["text"]])


def check_exhausted(case: dict, recorded: dict[str, Tensor], vision: dict[str, Tensor]) -> None:
    key = check_question(case, vision)
    if case["strict"]:
        check_kept(case, recorded, "cdpruner", case["T"], clip=str(CLIP), text=[case["text"]])
        return
    # Some come twice: ours are as many as asked for, the same as far as the rank goes, then by relevance.
    relevance, selected = vision[f"{key}.relevance"], recorded["selected"][0].tolist()
    rank = vision["projected"].shape[-1]
    found = select(cosines(vision["projected"]), relevance, case["T"])[0].tolist()
    assert len(set(selected)) == case["kept"] < case["T"] == len(set(found))
    assert found[:rank] == selected[:rank]
    by_relevance = relevance[0].sort(descending=True, stable=True).indices.tolist()
    rest = [token for token in by_relevance if token not in found[:rank]]
    assert found[rank:] == rest[: case["T"] - rank]


def check_next(case: dict, recorded: dict[str, Tensor]) -> None:
    model, (views, projected) = model_of(NEXT), crops_of(case["image"])
    read = reader("cdpruner", model, None, "clip", str(CLIP))
    num = case["selected_shape"][1]
    for text in case["texts"].values():  # which of them was asked is not recorded
        question = read([text])[0]
        scores = CDPruner().likeness([question] * len(projected), question.see(views.features))
        kept = select(cosines(projected), over_all(scores), num)
        if kept.tolist() == recorded["selected"].tolist():
            break
    check_crops(case, recorded, kept.tolist(), projected)
    own = select(cosines(projected), scaled(scores), num)
    alone = CDPruner().likeness([question], question.see(views.features[1:2]))
    assert own[1].tolist() == select(cosines(projected[1:2]), scaled(alone), num)[0].tolist()


def check_merged(case: dict, recorded: dict[str, Tensor]) -> None:
    """Another repository's version: the sign is negative, and the text one mean."""
    question, tokens = qwen_question(recorded, case["image"])
    pooled = question._replace(words=[question.pooled])
    relevance = scaled(CDPruner(flipped=True).likeness([pooled], tokens))
    assert select(cosines(tokens), relevance, case["T"])[0].tolist() == recorded["selected"].tolist()
    plain = CDPruner().likeness([question], tokens)
    means = torch.stack([torch.cosine_similarity(tokens[0], row, dim=-1) for row in question.words[0]]).mean(dim=0)
    same(plain[0], means, 1e-6)
