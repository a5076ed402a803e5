"""Clips on Video-LLaVA, in both formats: what is kept of every frame, what becomes of its [CLS] token, and budgets."""

import pytest
import torch
from helpers import close
from video_helpers import NUM_FRAMES, SIDE, clip, inputs_of, picture, tiny_original_video, tiny_video_llava

import vscan
from vscan.checks.oracle import masked_logits, recorded
from vscan.compat import ENCODED, cache_of, pixels_of_images, takes_encoded
from vscan.methods.base import Needs
from vscan.methods.sparsevlm import SparseVLM, recycled
from vscan.methods.tome import members_over_time
from vscan.methods.vispruner import select
from vscan.models.towers import run_tower
from vscan.select.merge import merge
from vscan.select.scan import scan

N, T = SIDE**2, NUM_FRAMES
FRAME, CLIP = 1 + N, NUM_FRAMES * (1 + N)
TEXT = [1, 4, 9, 7, 8]
LOCAL = {"local_layer": 1}
MODELS = {"stock": tiny_video_llava(), "original": tiny_original_video()}
CLS = [frame * FRAME for frame in range(T)]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def parts_of(model):
    """The video tower, the projector and the text model."""
    if hasattr(model, "encode_images"):
        return model.model.video_tower.vision_tower, model.model.mm_projector, model.model
    return model.model.video_tower, model.model.multi_modal_projector, model.model.language_model


def seen_of(model, video, rows=()):
    """What the video tower makes of a clip's frames."""
    tower, _, _ = parts_of(model)
    return run_tower(tower, video.transpose(0, 1), -2, Needs(rows=rows))


def run(model, rows, **reduction):
    """Logits of the last column, the statistics, and what entered layer 0."""
    inputs, entered = inputs_of(model, rows), []
    layer = parts_of(model)[2].layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with vscan.reduce(model, **reduction) as handle_of_reduction:
        logits = model(**inputs).logits[:, -1]
        stats, plan = handle_of_reduction.stats(), handle_of_reduction.plan(**inputs)
    handle.remove()
    assert stats.cache_lengths == [stage.length for stage in plan.of_layers]
    return logits, stats, entered[0]


def in_frames(patches: torch.Tensor) -> list[int]:
    """Patches [T, n] of frames as tokens of the clip."""
    return sorted((patches + 1 + torch.arange(len(patches)).unsqueeze(1) * FRAME).flatten().tolist())


# ------------------------------------------------------------------------------------------------- after the encoder


@pytest.mark.parametrize("frame_cls", [None, "keep", "drop"])
def test_vscan_scans_windows_of_four_and_merges_within_every_frame_beside_its_cls(model, frame_cls):
    seen, (_, project, _) = seen_of(model, clip(), (1, -2)), parts_of(model)
    local, best = scan(seen.rows[1], seen.rows[-2], (SIDE, SIDE), 20, window=4)
    assert local.shape == (T, 8)  # two of each of the four windows, which floor ten to eight
    kept = torch.cat((local, best), dim=1).sort(dim=1).values
    cls = [] if frame_cls == "drop" else CLS
    _, stats, entered = run(model, [[1, clip(), 5]], visual_tokens=20, frame_cls=frame_cls, **LOCAL)
    assert stats.rows[0].visual_tokens == CLIP
    assert stats.rows[0].kept == [sorted([*in_frames(kept), *cls])]
    merged = merge(project(seen.hidden[:, 1:]), kept)
    expected = merged if frame_cls == "drop" else torch.cat((project(seen.hidden[:, :1]), merged), dim=1)
    close(entered[0, 1:-1], expected.flatten(0, 1))


def test_the_scores_of_a_block_that_attends_over_time_are_of_what_its_spatial_norm_gets():
    model = MODELS["original"]
    tower, frames = model.model.video_tower.vision_tower, clip().transpose(0, 1)
    came, given, hooks = {}, {}, []
    for index, layer in enumerate(tower.encoder.layers):
        for module, found in ((layer, came), (layer.layer_norm1, given)):
            hooks.append(module.register_forward_pre_hook(lambda _, args, i=index, to=found: to.update({i: args[0]})))
    tower(frames)
    for hook in hooks:
        hook.remove()
    seen = run_tower(tower, frames, -2, Needs(rows=(0, 1, 2, 3)))
    for index, layer in enumerate(tower.encoder.layers):
        assert (given[index] - came[index]).abs().max() > 0.1  # time has passed between the block and its norm
        attention, normed = layer.self_attn, layer.layer_norm1(given[index])
        query, key = (
            project(normed).unflatten(-1, (4, -1)).transpose(1, 2) for project in (attention.q_proj, attention.k_proj)
        )
        rows = (query[:, :, :1] @ key.transpose(2, 3) * attention.scale).softmax(-1).mean(1)[:, 0, 1:]
        close(seen.rows[index], rows)


def test_time_goes_place_by_place_over_the_frames_of_one_clip_alone():
    layer = MODELS["original"].model.video_tower.vision_tower.encoder.layers[0]
    hidden = torch.randn(2 * T, FRAME, 32, generator=torch.Generator().manual_seed(0))
    found = layer.over_time(hidden)
    for number in range(2):
        for place in (0, 7, N):
            tokens = hidden[number * T : (number + 1) * T, place] + layer.temporal_embedding[0]
            normed, attention = layer.temporal_layer_norm1(tokens), layer.temporal_attn
            query, key, value = (
                project(normed).view(T, 4, 8) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            weights = (torch.einsum("thd,shd->hts", query, key) * 8**-0.5).softmax(-1)
            mixed = attention.out_proj(torch.einsum("hts,shd->thd", weights, value).flatten(1))
            close(found[number * T : (number + 1) * T, place], tokens + mixed)


def test_tokens_that_tome_merged_pass_through_time_at_the_places_of_all_their_members():
    layer = MODELS["original"].model.video_tower.vision_tower.encoder.layers[1]
    hidden = torch.randn(T, 5, 32, generator=torch.Generator().manual_seed(0))
    into = torch.tensor([[0, 1, 1, 2, 3, 4], [0, 4, 1, 2, 3, 1], [0, 1, 2, 2, 3, 4]])
    found, full = (
        members_over_time(layer, hidden, into),
        layer.over_time(hidden.gather(1, into[..., None].expand(-1, -1, 32))),
    )
    for frame in range(T):
        for token in range(5):
            close(found[frame, token], full[frame, into[frame] == token].mean(dim=0))


@pytest.mark.parametrize("budget", [20, 0.3])
@pytest.mark.parametrize("frame_cls", ["keep", "drop"])
def test_a_budget_of_a_clip_is_shared_by_its_frames(model, budget, frame_cls):
    rows = seen_of(model, clip(), (-2,)).rows[-2]
    num = T * budget if isinstance(budget, int) else int(budget * T * N)
    best = rows.flatten().sort(descending=True, stable=True).indices[:num]
    expected = sorted((best + best // N + 1).tolist())
    settings = {"method": "fastervlm", "visual_tokens": budget, "frame_cls": frame_cls}
    _, stats, _ = run(model, [[1, clip(), 5], [1, clip(1), picture(), 4]], group="image", **settings)
    cls = CLS if frame_cls == "keep" else []
    assert stats.rows[0].kept == [sorted([*expected, *cls])]
    assert [row.stages for row in stats.rows] == [
        [[0, num + len(cls)]],
        [[0, num + len(cls) + (budget if isinstance(budget, int) else int(budget * N))]],
    ]
    _, of_frames, _ = run(model, [[1, clip(), 5]], **settings)
    assert of_frames.rows[0].kept != stats.rows[0].kept
    assert of_frames.rows[0].kept[0] == sorted(
        [*in_frames(rows.sort(descending=True, stable=True).indices[:, : num // T]), *cls]
    )


def test_vispruner_ranks_and_compares_the_patches_of_each_frame(model):
    seen = seen_of(model, clip(), (-2,))
    kept = torch.cat(select(seen.rows[-2], seen.hidden[:, 1:], 20, 10), dim=1)
    _, stats, _ = run(model, [[1, clip(), 5]], method="vispruner", visual_tokens=20)
    assert stats.rows[0].kept == [sorted([*in_frames(kept), *CLS])]


# ------------------------------------------------------------------------------------------------- in the decoder


def ranked(model, rows, stage=0, **reduction):
    """The masking oracle's row before a pruning stage, [L], with columns counted from the first visual one; and the
    statistics, after the logits were found to be the oracle's."""
    inputs = inputs_of(model, rows)
    with vscan.reduce(model, **reduction) as handle, recorded(model) as records:
        logits = model(**inputs).logits[:, -1]
        stats = handle.stats()
    expected, weights = masked_logits(model, records[0], inputs["input_ids"].new_empty(len(rows), 0))
    close(logits, expected[:, 0])
    first = int(records[0].state.segments[0].prompt.visual[0].int().argmax())
    return weights[stage][0, first:], stats


def test_the_decoder_ranks_all_frames_together_and_leaves_every_cls(model):
    weights, stats = ranked(model, [[1, clip(), *TEXT]], visual_tokens=20, layers={2: 6}, **LOCAL)
    entering, left = stats.rows[0].kept
    patches = [token for token in entering if token not in CLS]
    best = sorted(patches, key=lambda token: -weights[token].item())[: 6 * T]
    assert left == sorted([*best, *CLS])
    per_frame = [sum(token // FRAME == frame for token in best) for frame in range(T)]
    assert len(set(per_frame)) > 1  # together, not six of each


def test_fastv_ranks_the_cls_tokens_like_all_others(model):
    # Before layer 1 it ranks by layer 0, of which all columns are the oracle's dense ones.
    _, stats = ranked(model, [[1, clip(), *TEXT]], method="fastv", layers={1: 6})
    assert [tokens for _, tokens in stats.rows[0].stages] == [CLIP, 6 * T]
    weights, spared = ranked(model, [[1, clip(), *TEXT]], layers={0: 6})  # by layer 0 itself, as FastV before layer 1
    best = sorted(range(CLIP), key=lambda token: -weights[token].item())[: 6 * T]
    assert stats.rows[0].kept[-1] == sorted(best)
    assert spared.rows[0].kept[-1] != sorted(best)
    assert set(CLS) <= set(spared.rows[0].kept[-1])


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        # of a frame's 64 patches, floored, and of what is left of the clip, its [CLS] tokens beside
        ({"visual_tokens": 0.32, "layers": {2: 0.5}, **LOCAL}, [T * 20 + T, T * 20 // 2 + T]),
        ({"visual_tokens": 0.32, "layers": {2: 0.5}, "frame_cls": "drop", **LOCAL}, [T * 20, T * 20 // 2]),
        # of the 192 that papers count, then of what is left, whatever that is
        ({"method": "fastv", "layers": {1: 0.5, 2: 0.5}}, [CLIP, T * N // 2, T * N // 4]),
        ({"method": "pdrop", "layers": {1: 1.0, 2: 0.5}}, [CLIP, CLIP, T * N // 2]),
        ({"method": "pdrop", "layers": {1: N, 2: N - 1}}, [CLIP, CLIP, T * (N - 1)]),
        ({"visual_tokens": N, "layers": {1: N}}, [CLIP, CLIP]),
        ({"visual_tokens": N, "layers": {1: N}, "frame_cls": "drop"}, [T * N, T * N]),
        ({"method": "fastv", "layers": {1: 1.0}, "frame_cls": "drop"}, [T * N, T * N]),
        ({"layers": {1: 0}}, [CLIP, T]),
    ],
    ids=str,
)
def test_shares_and_counts_are_of_the_patches_that_papers_count(model, settings, stages):
    _, stats, _ = run(model, [[1, clip(), *TEXT]], **settings)
    assert [tokens for _, tokens in stats.rows[0].stages] == stages
    assert stats.cache_lengths[0] == 1 + len(TEXT) + stages[0]
    assert stats.cache_lengths[-1] == 1 + len(TEXT) + stages[-1]


def test_rows_that_keep_all_keep_their_cls_beside_rows_that_do_not(model):
    # A count is of each view: of one image all 64 are asked for, and of the clip's 192 as many as that.
    rows = [[1, picture(), 5], [1, clip(), picture(), 6]]
    _, stats, _ = run(model, rows, method="fastv", layers={1: 0.9999, 2: 40})
    assert [row.stages[1:] for row in stats.rows] == [[[1, 63], [2, 40]], [[1, 255], [2, 160]]]


def test_a_method_that_recycles_leaves_the_cls_tokens_where_it_does_not_rank_them(model, monkeypatch):
    monkeypatch.setattr(SparseVLM, "ranks_cls", False)
    _, stats, _ = run(model, [[1, clip(), *TEXT], [1, picture(), 4]], method="sparsevlm", layers={1: 6})
    num_left = [6 * views + recycled(6 * views, N * views)[1] for views in (T, 1)]
    assert [row.stages[1][1] for row in stats.rows] == [num_left[0] + T, num_left[1]]
    assert set(CLS) <= set(stats.rows[0].kept[1])


def test_images_have_no_cls_to_keep_or_drop(model):
    found = [run(model, [[1, picture(), 5]], visual_tokens=20, frame_cls=each, **LOCAL) for each in (None, "drop")]
    assert found[0][1].rows == found[1][1].rows
    assert found[0][1].rows[0].stages == [[0, 20]]
    assert torch.equal(found[0][0], found[1][0])


# ------------------------------------------------------------------------------------------------- calls


def generate(model, rows, **options):
    inputs = inputs_of(model, rows)
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, **options}
    output = model.generate(inputs.pop("input_ids"), **inputs, **options)
    return output.sequences[:, -5:], output


@pytest.mark.parametrize("reduction", [{"visual_tokens": N}, {"visual_tokens": 20, "layers": {2: 6}, **LOCAL}], ids=str)
def test_beams_of_a_batch_are_those_of_its_prompts_alone(model, reduction):
    rows = [[1, clip(), 5], [1, 4, picture(), 9, clip(1), 6], TEXT]
    dense, _ = generate(model, rows, num_beams=3)
    with vscan.reduce(model, **reduction) as handle:
        together, output = generate(model, rows, num_beams=3)
        assert cache_of(output).get_seq_length(0) == handle.stats().cache_lengths[0] + 4
        alone = torch.cat([generate(model, [row], num_beams=3)[0] for row in rows])
    assert torch.equal(together, alone)
    if reduction == {"visual_tokens": N}:
        assert torch.equal(together, dense)


def test_clips_that_were_encoded_before_are_taken_where_nothing_is_dropped_after_the_encoder():
    model = MODELS["stock"]
    if not takes_encoded(model):
        pytest.skip("this transformers encodes within the model alone")
    inputs = inputs_of(model, [[1, clip(), picture(), 5], [1, clip(1), 4]])
    names = {"image": pixels_of_images(model.base_model), "video": "pixel_values_videos"}
    features = {
        kind: getattr(model.base_model, f"get_{kind}_features")(inputs[name], return_dict=True)
        for kind, name in names.items()
    }
    rest = {name: value for name, value in inputs.items() if name not in names.values()}
    with vscan.reduce(model, layers={2: 6}) as reduction:
        expected = model(**inputs).logits
        kept = reduction.stats().rows
        assert torch.equal(model(**rest, **{ENCODED: dict(features)}).logits, expected)
        assert reduction.stats().rows == kept
    for settings in ({"visual_tokens": 20, **LOCAL}, {"layers": {2: 6}, "frame_cls": "drop"}):
        with (
            vscan.reduce(model, **settings),
            pytest.raises(ValueError, match="encoded under this reduction, got dense"),
        ):
            model(**rest, **{ENCODED: dict(features)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_cls": "some"}, "frame_cls: expected one of keep, drop, or None, got 'some'"),
        (
            {"group": "image", "method": "fastv", "layers": {1: 3}},
            "group: expected 'view' or None for 'fastv', got 'image'",
        ),
        (
            {"group": "image", "method": "tome", "visual_tokens": 9},
            "group: expected 'view' or None for 'tome', got 'image'",
        ),
        (
            {"visual_tokens": N + 1},
            "visual_tokens: expected at most the 64 visual tokens of a view that arrive, got 65",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        vscan.apply(model, **settings)
    assert str(caught.value) == message
