"""Recorded graphs behind stock `generate`: `vscan.reduce(model, ..., capture=True)`.

A budget that is fixed beforehand makes static shapes, and that is what a CUDA graph needs. Three *regions* of a prompt
run on static buffers: encode (pixels to features after selection), prefill (embeddings to the first hidden state and
the cache), and step (a token to its hidden state). Each is recorded once for a *bucket* of prompts and replayed; on a
CPU the same functions run again on the same buffers. What fits no bucket runs eagerly, and `stats()` says so.

    buckets.py    on the host: the bucket of a prompt, its padding, its bytes
    asked.py      on the host: what stands in the way of recording, and how long an answer may get
    recorder.py   how a function is recorded and replayed: a CUDA graph, or the function itself
    layers.py     the static cache of a bucket
    regions.py    the static buffers of a bucket and the functions between them
    identity.py   whether a model is still the one that was recorded
    captured.py   the cache that a captured prompt hands out
    capture.py    all of it together: `Capture`, one a reduction
"""

from .capture import Capture

__all__ = ["Capture"]
