"""The cache that a captured prompt hands out: what `generate` carries from token to token."""

from copy import copy

from transformers import Cache

from ..cache import PromptState, ReducedCache


class CapturedCache(ReducedCache, Cache):
    """The cache of one prompt, whose keys and values lie in the static buffers of a bucket.

    Modifications:
    - lengths are counted on the host: columns of the bucket's prompt, and tokens since;
    - only the graphs of its own bucket write to it, in the `generate` call that began it; everything else that would
      change it is an error;
    - once another prompt takes the buffers, its layers are empty.

    Args:
        cache: of the bucket.
        lengths: columns of the prompt in every layer.
        state: what decoding has to know.
        force: of the reduction.
    """

    def __init__(self, cache: Cache, lengths: list[int], state: PromptState, force):
        super().__init__(layers=[copy(layer) for layer in cache.layers])
        self.lengths, self.num_new = lengths, 0
        self.visual_prompt_state, self.force = state, force

    @property
    def is_compileable(self) -> bool:
        """False: its masks are made inside the graphs."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that a layer holds, padding included."""
        return self.lengths[layer_idx] + self.num_new

    def leave(self) -> None:
        """Another prompt takes the buffers."""
        for layer in self.layers:
            layer.keys, layer.values = (part[:, :, :0].clone() for part in (layer.keys, layer.values))

    def _refuse(self, *args, **kwargs):
        raise ValueError(
            "expected the cache of a captured prompt to be carried on by its own generate call, one token at a time, "
            "got another use of it: run the prompt again, with capture=False"
        )

    update = reorder_cache = batch_select_indices = batch_repeat_interleave = reset = crop = _refuse

    def __deepcopy__(self, memo: dict):
        self._refuse()
