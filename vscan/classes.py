"""Classes of transformers with something of ours mixed in, made once each."""

from functools import lru_cache


@lru_cache(maxsize=32)
def mixed(original: type, mixin: type) -> type:
    """`original` with `mixin` mixed in; it keeps its name, by which transformers knows what it can record."""
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": mixin.__doc__}
    return type(original.__name__, (mixin, original), names)


def original_of(cls: type, mixin: type) -> type:
    """The class behind a mixin in the order of resolution: what its `super()` calls; `cls` itself without it."""
    order = cls.__mro__
    return order[order.index(mixin) + 1] if mixin in order else cls
