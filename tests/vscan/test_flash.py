"""FlashAttention's contract on a CPU: a 2-D padding mask or none, no positions, queries aligned to the end of the keys.

The kernel itself needs a GPU; here transformers' own mask builder for it is used with a slow attention that takes just
what FlashAttention takes.
"""

import pytest
import torch
from helpers import pictures, prompt, tiny_llava
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import vscan
from vscan.compat import cache_of

NAME = "ragged_attention"  # a name with "flash" in it would make transformers load a kernel


def attend(module, query, key, value, attention_mask, scaling=None, position_ids=None, **kwargs):
    """[B, H, Q, d] -> [B, Q, H, d], as FlashAttention: per row without its padding, causal from the last key on."""
    assert position_ids is None  # it would take gaps in them for the borders of packed sequences
    assert attention_mask is None or attention_mask.ndim == 2
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    output = torch.zeros_like(query)
    for row in range(len(query)):
        keys = torch.arange(key.shape[2])
        if attention_mask is not None:
            keys = attention_mask[row].nonzero()[:, 0]
        queries = keys[keys >= key.shape[2] - query.shape[2]] - (key.shape[2] - query.shape[2])
        causal = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
        causal = causal if module.is_causal else torch.ones_like(causal)
        output[row][:, queries] = torch.nn.functional.scaled_dot_product_attention(
            query[row][:, queries], key[row][:, keys], value[row][:, keys], attn_mask=causal, scale=scaling
        )
    return output.transpose(1, 2), None


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", {**AttentionInterface._global_mapping, NAME: attend})
    monkeypatch.setattr(
        AttentionMaskInterface,
        "_global_mapping",
        {**AttentionMaskInterface._global_mapping, NAME: flash_attention_mask},
    )
    sdpa, flash = tiny_llava(), tiny_llava()
    flash.set_attn_implementation(NAME)
    assert flash.model.language_model.config._attn_implementation == NAME
    return sdpa, flash


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize(
    "rows",
    [
        [[1, 5, "image", 7, 8]],
        [[1, 5, 6, "image", 7], [1, "image", 8, 9, 10, 11, 12]],
        [[1, 5, "image", 7, "image", 9], [1, 5, 6, 7], [1, "image", 8]],
    ],
    ids=["one prompt", "unequal prompts", "two images, none, one"],
)
def test_flash_attention_gives_the_tokens_and_the_caches_of_sdpa(models, rows, positions):
    num_images = sum(row.count("image") for row in rows)
    ids, mask = prompt(rows, 144)
    found = []
    for model in models:
        with vscan.reduce(
            model, visual_tokens=20, layers={2: 9, 4: 5}, positions=positions, local_layer=2
        ) as reduction:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=pictures(model, num_images),
                max_new_tokens=6,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        lengths = [cache_of(output).get_seq_length(layer) for layer in range(6)]
        found.append((output.sequences.tolist(), [reduction.kept(stage).tolist() for stage in range(3)], lengths))
        logits = torch.cat(output.logits)
    assert found[0] == found[1]
    assert logits.isfinite().all()
    assert found[0][2] == sorted(found[0][2], reverse=True)
    assert found[0][2][0] > found[0][2][-1]
