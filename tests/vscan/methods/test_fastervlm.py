"""FasterVLM keeps what [CLS] attends to most, and nothing else."""

import torch
from helpers import encoded

import vscan
from vscan.methods import method_class
from vscan.methods.base import Views
from vscan.methods.vispruner import VisPruner


def test_it_keeps_the_tokens_of_largest_attention():
    generator = torch.Generator().manual_seed(0)
    features, rows = torch.randn(3, 36, 8, generator=generator), torch.rand(3, 36, generator=generator)
    views = Views(torch.zeros(3, 3, 6, 6), features, {-2: rows}, (6, 6), lambda values: 2 * values)
    values, slots = encoded(method_class("fastervlm")(), views, 5)
    expected = [sorted(sorted(range(36), key=lambda token: -row[token])[:5]) for row in rows.tolist()]
    assert slots.tolist() == expected
    assert torch.equal(values, 2 * torch.stack([each[kept] for each, kept in zip(features, expected, strict=True)]))


def test_it_is_vispruner_with_another_default():
    cls = method_class("fastervlm")
    assert issubclass(cls, VisPruner)
    assert (cls().important_ratio, VisPruner().important_ratio) == (1.0, 0.5)
    assert cls(attention_layer=3).needs.rows == (3,)
    assert vscan.ReductionConfig("fastervlm", 64).method == "fastervlm"
