"""What differs per model: how its views are encoded, and how its shell hands visual tokens to the decoder.

A model that knows how to be reduced says so itself, with `install_reduction(reduction) -> undo`; stock transformers
models are found here by their `model_type`.
"""

from importlib import import_module

ADAPTERS = {"llava": "vscan.models.llava:install", "llava_next": "vscan.models.llava_next:install"}


def unwrapped(model):
    """The model itself, where an adapter library has put a wrapper around it."""
    return unwrapped(model.get_base_model()) if hasattr(model, "get_base_model") else model


def installer(model):
    """The function that installs a reduction on `model`: reduction -> undo.

    Raises:
        ValueError: for a model that is not known.
    """
    if hasattr(model, "install_reduction"):
        return model.install_reduction
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ADAPTERS:
        raise ValueError(
            f"expected a model of type {', '.join(ADAPTERS)} (or one with an `install_reduction` of its own), "
            f"got {type(model).__name__} of type {model_type!r}"
        )
    module, _, name = ADAPTERS[model_type].partition(":")
    install = getattr(import_module(module), name)
    return lambda reduction: install(model, reduction)
