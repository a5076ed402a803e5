"""The methods, one file each. A method is found here by its name; adding one is one file and one line.

Values are the class itself or "module:Class", so that the names are known before torch is imported.
"""

from importlib import import_module

METHODS: dict = {
    "vscan": "vscan.methods.vscan:VScan",
    "vispruner": "vscan.methods.vispruner:VisPruner",
    "fastervlm": "vscan.methods.vispruner:FasterVLM",
    "random": "vscan.methods.random:Random",
    "downsample": "vscan.methods.downsample:Downsample",
}


def method_class(name: str) -> type:
    """The class of the method called `name`; KeyError where there is none (`ReductionConfig` has checked that)."""
    found = METHODS[name]
    if isinstance(found, str):
        module, _, cls = found.partition(":")
        found = getattr(import_module(module), cls)
    return found
