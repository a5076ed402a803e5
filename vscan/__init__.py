"""Training-free visual token reduction for vision-language models.

    with vscan.reduce(model, visual_tokens=96, layers={16: 32}) as reduction:
        output = model.generate(**inputs, max_new_tokens=32)
    print(reduction.stats())

Rooms: `api` (what a user says: reduce, apply), `config` and `stats`; `plan` (what is known before a prompt runs),
`decoder` (the loop whose prompt gets shorter), `prompt`, `masks` and `cache` (what is known of that prompt, and the KV
cache that it hangs on); `select` (which tokens stay and where the others go: tensors in, tensors out), `methods` (one
file a method), `models` (one file a model); `capture` (prompts of one shape as CUDA
graphs); `io` (checkpoints, pictures, ranks), `eval` (question files in, answers out), `tools` (compare, plot, profile,
selfcheck). `compat` holds every name that transformers does not promise to keep; `checks` looks whether it does what is
relied on.

Names resolve on first use, so that `vscan.config`, `vscan.flops` and `vscan.eval` work before torch is imported.
"""

from importlib import import_module

__version__ = "0.1.0"

_ROOM_OF = {
    "reduce": "api",
    "apply": "api",
    "Reduction": "api",
    "ReductionConfig": "config",
    "static_cache": "cache",
    "METHODS": "methods",
    "Method": "methods.base",
    "Views": "methods.base",
}
__all__ = [*_ROOM_OF, "__version__"]


def __getattr__(name):
    if name in _ROOM_OF:
        return getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    raise AttributeError(f"module 'vscan' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
