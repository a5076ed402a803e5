"""What differs per model, one file each; a model is found here by its `model_type`, and adding one is one file and one
line. A model of another package says so itself, with a `reduction_family` that names its class."""

from importlib import import_module

FAMILIES = {
    "llava": "vscan.models.llava:Llava",
    "llava_next": "vscan.models.llava_next:LlavaNext",
    "video_llava": "vscan.models.video_llava:VideoLlava",
    "qwen2_5_vl": "vscan.models.qwen2_5_vl:Qwen2_5_VL",
    "qwen2_vl": "vscan.models.qwen2_5_vl:Qwen2_5_VL",
}


def unwrapped(model):
    """The model itself, where an adapter library has put a wrapper around it."""
    return unwrapped(model.get_base_model()) if hasattr(model, "get_base_model") else model


def family_of(model):
    """The `vscan.models.family.Family` around a model.

    Raises:
        ValueError: for a model that is not known, or one that is put together in a way not supported.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    name = getattr(model, "reduction_family", None) or FAMILIES.get(model_type)
    if name is None:
        raise ValueError(
            f"expected a model of type {', '.join(FAMILIES)} (or one with a `reduction_family` of its own), "
            f"got {type(model).__name__} of type {model_type!r}"
        )
    module, _, cls = name.partition(":")
    return getattr(import_module(module), cls)(model)
