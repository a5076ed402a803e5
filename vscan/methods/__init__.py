"""The methods, one file each. A method is found here by its name; adding one is one file and one line.

Values are the class itself or "module:Class", so that names and hyper-parameters are known before torch is imported.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..fields import REQUIRED, Field, fields_of

METHODS: dict = {
    "vscan": "vscan.methods.vscan:VScan",
    "vispruner": "vscan.methods.vispruner:VisPruner",
    "fastervlm": "vscan.methods.vispruner:FasterVLM",
    "random": "vscan.methods.random:Random",
    "downsample": "vscan.methods.downsample:Downsample",
    "fastv": "vscan.methods.fastv:FastV",
    "pdrop": "vscan.methods.pdrop:PyramidDrop",
    "sparsevlm": "vscan.methods.sparsevlm:SparseVLM",
    "hired": "vscan.methods.hired:HiRED",
    "tome": "vscan.methods.tome:ToMe",
    "divprune": "vscan.methods.divprune:DivPrune",
    "scope": "vscan.methods.scope:SCOPE",
    "visionzip": "vscan.methods.visionzip:VisionZip",
    "prumerge": "vscan.methods.prumerge:PruMerge",
    "cdpruner": "vscan.methods.cdpruner:CDPruner",
    "mmtok": "vscan.methods.mmtok:MMTok",
    "eadp": "vscan.methods.eadp:EADP",
    "dart": "vscan.methods.dart:DART",
}


def method_class(name: str) -> type:
    """The class of the method called `name`; KeyError where there is none (`ReductionConfig` has checked that)."""
    found = METHODS[name]
    if isinstance(found, str):
        module, _, cls = found.partition(":")
        found = getattr(import_module(module), cls)
    return found


def method_fields(name: str) -> dict[str, Field]:
    """{hyper-parameter: what is known of it} of the method called `name`, in their order.

    Raises:
        ValueError: for a method whose file is not there, or one of whose fields has a name that is taken.
    """
    try:
        return {field.name: field for field in fields_of(METHODS[name])}
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from error


def make_method(name: str, values: Mapping[str, Any]) -> Any:
    """The method called `name` with some hyper-parameters, the others at their defaults.

    Raises:
        ValueError: for a hyper-parameter that it does not have, lacks, or that has another value than its annotation
            allows or the method itself.
    """
    fields = method_fields(name)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"method {name!r}: expected hyper-parameters among {sorted(fields)}, got {unknown}")
    missing = [key for key, field in fields.items() if field.default is REQUIRED and key not in values]
    if missing:
        raise ValueError(f"method {name!r}: expected a value of {missing[0]}, got none")
    return method_class(name)(**values)
