"""The static cache of a bucket: layers as long as what each is given of a prompt and an answer, in one buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..compat import StaticLayer
from .buckets import Bucket, cache_numel, lengths_of


class BucketLayer(StaticLayer):
    """A layer of a bucket's cache.

    Modifications:
    - its keys and values are parts of one buffer that all layers share;
    - a prompt attends to itself alone, not to the room for the answer, and nothing is read to know that it comes first.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: Tensor):
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, length
        self.device, self.dtype, self.is_initialized, self.is_fresh = keys.device, keys.dtype, True, True
        self.batch_size, self.num_heads, _, self.k_head_dim = keys.shape
        self.v_head_dim = self.k_head_dim

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_fresh:
            return super().update(key_states, value_states, *args, **kwargs)
        self.is_fresh, length = False, key_states.shape[2]
        self.keys[:, :, :length].copy_(key_states)
        self.values[:, :, :length].copy_(value_states)
        self.cumulative_length.fill_(length)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length, 0) if self.is_fresh else super().get_mask_sizes(query_length)

    def get_seq_length(self):
        return 0 if self.is_fresh else self.cumulative_length


class CacheBuffers:
    """Keys, values and lengths of all layers.

    Args:
        config: the decoder's.
        bucket: of prompts.
        lengths: columns of every layer.
    """

    def __init__(self, config, bucket: Bucket, lengths: Sequence[int]):
        (heads, head_dim), batch = heads_of(config), bucket.batch
        numbers = cache_numel(lengths, batch, heads, head_dim)
        self.states = torch.zeros(numbers, dtype=bucket.dtype, device=bucket.device)
        self.counts = torch.zeros(len(lengths), dtype=torch.long, device=bucket.device)
        self.layers, taken = [], 0
        for index, columns in enumerate(lengths):
            size = batch * heads * columns * head_dim
            parts = (self.states[at : at + size].view(batch, heads, columns, head_dim) for at in (taken, taken + size))
            self.layers.append(BucketLayer(*parts, self.counts[index]))
            taken += 2 * size

    def reset(self) -> None:
        """Empty them where they lie: what an earlier prompt left may not be finite, and NaN times zero is NaN."""
        self.states.zero_()
        self.counts.zero_()
        for layer in self.layers:
            layer.is_fresh = True


def heads_of(config) -> tuple[int, int]:
    """Heads of keys and values, and numbers of each."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_key_value_heads, head_dim


def bytes_of(bucket: Bucket, bound, config) -> int:
    """Bytes of a bucket's buffers, before they are made: the cache and the prompt's embeddings; the rest is small."""
    heads, head_dim = heads_of(config)
    numbers = cache_numel(lengths_of(bound, bucket.room), bucket.batch, heads, head_dim)
    return (numbers + bucket.batch * bucket.length * bucket.width) * bucket.dtype.itemsize
