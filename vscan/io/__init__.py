"""Checkpoint folders, weights, pictures, frames and processes of a run: what comes from outside; `load` gives a model.

The name `load` is the function, which the module of that name defines.
"""

from .load import load

__all__ = ["load"]
