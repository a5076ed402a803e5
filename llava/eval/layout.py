"""LLaVA's scripts name files one by one; `vscan.eval` reads a benchmark's folder. This makes one of the other."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def laid_out(files: dict[str, str | Path]) -> Iterator[Path]:
    """A folder in a benchmark's layout with the given files and folders in it.

    Args:
        files: the name in the layout -> where it lies.

    Yields:
        The folder that holds all of them under their names; where there is none, a temporary one with links.

    Raises:
        FileNotFoundError: for one that is missing.
    """
    absent = [str(place) for place in files.values() if not Path(place).exists()]
    if absent:
        raise FileNotFoundError(f"expected a file or folder at {', '.join(map(repr, absent))}, found none")
    places = {name: Path(place).absolute() for name, place in files.items()}
    parents = {place.parent for name, place in places.items() if place.name == name}
    if len(parents) == 1 and all(place.name == name for name, place in places.items()):
        yield parents.pop()
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, place in places.items():
            os.symlink(place, Path(folder) / name)
        yield Path(folder)
