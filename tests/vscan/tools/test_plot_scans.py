"""Each token is drawn in the colour of the scan that selected it, whatever the method's own fields are."""

import itertools

import pytest
import torch
from helpers import Injected

from llava.model.builder import load_pretrained_model
from playground import tiny
from vscan import ReductionConfig
from vscan.methods import vscan as method_file
from vscan.methods.base import Views
from vscan.methods.vscan import VScan
from vscan.tools import plot


@pytest.fixture
def selected(monkeypatch):
    """What the method's own scans return, call by call."""
    calls, scan = [], method_file.scan

    def spy(*arguments, **keywords):
        calls.append(scan(*arguments, **keywords))
        return calls[-1]

    monkeypatch.setattr(method_file, "scan", spy)
    return calls


def labels(calls, num_tokens, kept):
    """What is to be drawn of `kept`: {label: tokens} of the last call."""
    local, best = (
        {view * num_tokens + token for view, tokens in enumerate(found.tolist()) for token in tokens}
        for found in calls[-1]
    )
    return {"local scan": sorted(local & set(kept)), "global scan": sorted(best & set(kept))}


@pytest.mark.parametrize("num_views", [1, 3])
def test_the_parts_are_those_of_the_method_whatever_its_fields(selected, num_views):
    torch.manual_seed(0)
    height, width, num = 24, 24, 100  # that windows do not divide
    rows = {layer: torch.rand(num_views, height * width) for layer in (5, -2)}
    views = Views(
        pixels=torch.zeros(num_views, 1),
        features=torch.rand(num_views, height * width, 4),
        rows=rows,
        grid=(height, width),
        project=lambda features: features,
    )
    kinds = set()
    for capped, window, share, merge in itertools.product((False, True), (4, 6), (0.25, 0.5), (False, True)):
        observer = plot.Observer(VScan(capped=capped, window=window, global_share=share, merge=merge))
        kept = observer.encode(views, num).slots + torch.arange(num_views)[:, None] * height * width
        kept = kept.flatten().tolist()
        calls, drawn = list(selected), observer.parts(kept)
        assert drawn == labels(calls, height * width, kept)
        assert sum(map(len, drawn.values())) == num * num_views
        assert observer.parts(kept[::3]) == labels(calls, height * width, kept[::3])
        kinds.add(tuple(drawn["local scan"]))
    assert len(kinds) == 2 * 2 * 2  # whatever is not merging chooses other tokens


def test_the_capped_scan_of_a_picture_is_drawn_as_it_was(checkpoint, tmp_path, selected, monkeypatch):
    tiny.draw(tmp_path / "shapes.png", seed=3)
    loaded = load_pretrained_model(str(checkpoint), device="cpu")
    drawn, figure = [], plot.figure
    monkeypatch.setattr(plot, "figure", lambda *arguments: drawn.append(arguments) or figure(*arguments))
    monkeypatch.setattr(plot, "MAX_NEW_TOKENS", 1)
    config = ReductionConfig("vscan", 12, fields={"capped": True})
    plot.draw(loaded, config, tmp_path / "shapes.png", "What is this?")
    ((caption, kept),) = drawn[0][2]
    assert caption == "encoder: 12 of 576"
    assert kept == labels(selected[:1], 576, [token for tokens in kept.values() for token in tokens])
    assert list(map(len, kept.values())) == [6, 6]


def test_other_methods_have_one_part():
    assert plot.Observer(Injected()).parts([1, 2]) == {"kept by Injected": [1, 2]}
