"""What differs per model: how its views are encoded, and how its shell hands visual tokens to the decoder.

A model that knows how to be reduced says so itself, with `install_reduction(reduction) -> undo`; stock transformers
models are found here by their `model_type`.
"""

from importlib import import_module

ADAPTERS = {
    "llava": "vscan.models.llava:install",
    "llava_next": "vscan.models.llava_next:install",
    "qwen2_5_vl": "vscan.models.qwen2_5_vl:install",
    "qwen2_vl": "vscan.models.qwen2_5_vl:install",
}
# Where a method's hyper-parameters have other defaults on a model: (model, method) -> {field: value}.
DEFAULTS = dict.fromkeys(("qwen2_5_vl", "qwen2_vl"), "vscan.models.qwen2_5_vl:defaults")


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
    install = _resolved(ADAPTERS[model_type])
    return lambda reduction: install(model, reduction)


def defaults(model, method: str) -> dict:
    """A method's hyper-parameters that have other defaults on this kind of model."""
    found = DEFAULTS.get(getattr(getattr(model, "config", None), "model_type", None))
    return _resolved(found)(model, method) if found else {}


def _resolved(name: str):
    """The object that "module:name" names."""
    module, _, name = name.partition(":")
    return getattr(import_module(module), name)
