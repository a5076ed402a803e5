"""SparseVLM's cases: whole prompts of both releases, the rating of given attention, and clusters of given points.

Where the published noise decides (what is not strict), it is added to our densities; where rounding decides in which
order tokens are recycled, the recorded scores stand in for ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods import METHODS, sparsevlm
from vscan.methods.base import Kept, Stage
from vscan.methods.shared import cluster
from vscan.methods.sparsevlm import LISTS, SparseVLM

from .common import inputs_of, model_of, pixels_of, run, same, stage_of

BASE = "llava15_vscan"


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if not index.startswith("func"):
        check_prompt(case, load_file(folder / case["file"]))
    elif name.startswith("cluster"):
        check_clusters(case, load_file(folder / f"func_{name}.safetensors"))
    else:
        check_ratings(name, case, load_file(folder / "func_scores.safetensors"))


@lru_cache(maxsize=2)
def repeated(num_layers: int, num_heads: int):
    """The recorded model with its decoder's layers over and over, and its width split into so many heads."""
    base = model_of(BASE)
    config = base.config
    changed = {"num_hidden_layers": num_layers, "num_attention_heads": num_heads, "num_key_value_heads": num_heads}
    config = type(config)(**{**config.to_dict(), **changed, "head_dim": config.hidden_size // num_heads})
    model = type(base)(config).eval()
    model.model.vision_tower = base.model.vision_tower
    weights, period = base.state_dict(), len(base.model.layers)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer % period}."
        of_layer = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        model.model.layers[layer].load_state_dict(of_layer)
    model.load_state_dict({key: value for key, value in weights.items() if ".layers." not in key}, strict=False)
    model.generation_config = base.generation_config
    return model


@dataclass
class Seen:
    """What the stages of a prompt did, one entry each: what they were given, scored, recycled, clustered and kept."""

    stages: list[Stage] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    centres: list[Tensor] = field(default_factory=list)
    clusters: list[Tensor] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)


@contextmanager
def watched(recorded: dict[str, Tensor], noise: bool, given: set[int]) -> Iterator[Seen]:
    """Watch the method.

    Args:
        noise: add the recorded noise to densities.
        given: stages that go on with the recorded scores.
    """
    seen = Seen()

    class Watched(SparseVLM):
        def prune(self, stage: Stage) -> Kept:
            seen.stages.append(stage)
            seen.kept.append(super().prune(stage))
            return seen.kept[-1]

        def ratings(self, stage: Stage, asking: Tensor) -> Tensor:
            scores, number = super().ratings(stage, asking), len(seen.scores)
            seen.scores.append(scores[stage.visual])
            if number in given:
                scores = scores.masked_scatter(stage.visual, recorded[f"stage{number}_scores"])
            return scores

    density, peaks = cluster.density, cluster.density_peaks

    def noisy(distances: Tensor, num_neighbours: list[int]) -> Tensor:
        return density(distances, num_neighbours) + recorded[f"stage{len(seen.centres)}_density_noise"]

    def watched_peaks(*args) -> tuple[Tensor, Tensor]:
        centres, clusters = peaks(*args)
        seen.centres.append(centres[0])
        seen.clusters.append(clusters[0])
        return centres, clusters

    with (
        patch.dict(METHODS, {"sparsevlm": Watched}),
        patch.object(sparsevlm, "density_peaks", watched_peaks),
        patch.object(cluster, "density", noisy if noise else density),
    ):
        yield seen


def check_prompt(case: dict, recorded: dict[str, Tensor]) -> None:
    settings, stages = case["settings"], case["stages"]
    release = settings.get("USE_VERSION", "1.5").replace("_", ".")
    published = LISTS[release][settings.get("retained_tokens", settings.get("RETAIN_TOKN"))]
    for stage, most in zip(stages, published, strict=False):
        assert stage["kept"] == min(most, stage["candidates"] - 1)
    config = model_of(BASE).config
    num_heads = settings.get("num_attention_heads", config.num_attention_heads)
    model = repeated(settings["num_layers"], num_heads)
    ids, pixels = inputs_of(BASE)["input_ids"], pixels_of(BASE, case["image"])
    start = ids[0].tolist().index(-200)
    given = {number for number in range(len(stages)) if f"stage{number}.recycle" in case["disagree"]}
    noise = release == "1.5" and not case["strict"]
    with watched(recorded, noise, given) as seen:
        layers = {stage["layer"] + 1: stage["kept"] for stage in stages}
        found = run(model, ids, pixels, method="sparsevlm", layers=layers, release=release)

    asking = seen.stages[0].memory["raters"][0].nonzero()[:, 0] - start  # of the text, that behind the picture
    assert asking.tolist() == recorded["rater_idx"].tolist()
    for number, stage in enumerate(stages):
        check_selection(number, stage, seen, recorded, start, release)
        assert found.positions(0, stage["layer"] + 1) == recorded[f"stage{number}_positions_after"].tolist()
    assert found.lengths == recorded["kv_len_prefill"].tolist()
    # Published decoding steps of 1.5 are at the length of each layer's cache, whatever position is passed on.
    positions = recorded["decode_positions" if release == "2.0" else "decode_cache_len_before"].tolist()
    for step, of_layers in enumerate(positions, start=1):
        assert [found.positions(step, layer)[0] for layer in range(len(of_layers))] == of_layers
    assert found.tokens == recorded["generated"].tolist()
    same(found.logits, recorded["scores"])
    same(found.logits[0], recorded["prefill_logits_last"])
    same(found.last_hidden, recorded["last_hidden_per_layer"])


def check_selection(number: int, case: dict, seen: Seen, recorded: dict[str, Tensor], start: int, release: str) -> None:
    """One stage: tokens are numbered as they arrive there, from the column where the picture starts."""
    stage, kept, num = seen.stages[number], seen.kept[number], case["kept"]

    def same_ints(got: Tensor, name: str) -> None:
        assert got.tolist() == recorded[f"stage{number}_{name}"].tolist(), name

    assert (stage.num, stage.arriving) == ([num], [case["candidates"]])
    if f"stage{number}_hidden_before" in recorded:
        same(stage.hidden[0], recorded[f"stage{number}_hidden_before"])
    same_scores(seen.scores[number], recorded[f"stage{number}_scores"])
    same_ints(kept.slots[0, :num] - start, "kept_sorted")
    if release == "2.0":
        assert kept.values is None
        assert kept.slots.shape[1] == num
        return
    into = kept.into[0, start : start + case["candidates"]]
    order = recorded[f"stage{number}_recycle_order"]
    assert sorted((into >= num).nonzero()[:, 0].tolist()) == sorted(order.tolist())
    same_ints(into[order] - num, "assign")
    same_ints(seen.clusters[number], "assign")  # and so the order is the same
    same_ints(seen.centres[number], "centers")
    assert (kept.slots[0, num:] - start).tolist() == order[seen.centres[number]].tolist()
    assert kept.slots.shape[1] == case["visual_after"] == num + case["clusters"]
    same(kept.values[0, num:], recorded[f"stage{number}_merged"])


def same_scores(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4 * expected.abs().mean().item())


def check_ratings(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    """The rating of given attention: release 2.0 without its weights, which the published function leaves to the layer;
    of 1.0, whose number of tokens rests on a rank, the tokens that go with the number."""
    attention, asking = recorded["attn"].float(), recorded["rater_idx"]
    length, num_visual = attention.shape[-1], len(recorded["scores"])
    release = "2.0" if name.startswith("v20") else "1.5"
    expected = recorded["v20_scores" if release == "2.0" else "scores"]
    num = int(recorded[f"{name}_mask"].sum())
    assert num == case["kept"]
    if "retained_tokens" in case or "RETAIN_TOKN" in case:
        published = LISTS[release][case.get("retained_tokens", case.get("RETAIN_TOKN"))]
        assert num == min(published[{"2": 0, "6": 1, "15": 2}[name.split("layer")[1]]], num_visual - 1)
    means = attention.mean(dim=1)[0]
    starts = range(length - num_visual - int(asking.max()))
    start = min(
        starts,
        key=lambda at: (means[at + num_visual + asking, at : at + num_visual].mean(0) - recorded["scores"]).abs().max(),
    )
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, start : start + num_visual] = True

    class Given(Stage):
        def rows(self, queries: Tensor | None = None, back: int = 0) -> Tensor:
            assert back == 1
            return attention[:, :, queries[0]]

    text_model = model_of(BASE).model
    stage = stage_of(text_model, 1, torch.zeros(1, length, text_model.config.hidden_size), visual, [num])
    raters = torch.zeros_like(visual[:, num_visual:]).scatter(1, start + asking.unsqueeze(0), True)
    stage = Given(**{each.name: getattr(stage, each.name) for each in fields(stage)} | {"memory": {"raters": raters}})
    with patch.object(sparsevlm, "closeness", lambda stage, columns: torch.ones(1, len(columns[0]), length)):
        method = SparseVLM(release)
        torch.testing.assert_close(method.ratings(stage, raters)[visual], expected, rtol=1e-5, atol=1e-7)
        kept = method.prune(stage)
    assert (kept.slots[0, :num] - start).tolist() == recorded[f"{name}_mask"].nonzero()[:, 0].tolist()


def check_clusters(case: dict, recorded: dict[str, Tensor]) -> None:
    points, num = recorded["x"].unsqueeze(0), case["clusters"]
    density = cluster.density

    def noisy(distances: Tensor, num_neighbours: list[int]) -> Tensor:
        return density(distances, num_neighbours) + recorded["density_noise"]

    noises = [True] + [False] * case["centers_independent_of_noise"]
    for noise in noises:
        with patch.object(cluster, "density", noisy if noise else density):
            centres, clusters = cluster.density_peaks(points, [points.shape[1]], [num])
        assert centres[0].tolist() == recorded["centers"].tolist()
        assert clusters[0].tolist() == recorded["assign"].tolist()
        same(cluster.cluster_means(points, [points.shape[1]], clusters, num)[0], recorded["merged"], 1e-5)
    if case["merged_independent_of_noise"]:
        _, clusters = cluster.density_peaks(points, [points.shape[1]], [num])
        same(cluster.cluster_means(points, [points.shape[1]], clusters, num)[0], recorded["merged"], 1e-5)
