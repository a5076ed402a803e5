"""Every case recorded from the published code of a rival, for every rival that is registered.

A folder of cases is a method's; each of its index files (`cases*.json`, `func*.json`) lists cases, and
`rivals/<method>.py` beside this file compares one: `check(index, name, case, folder)`. GOLDEN_RIVALS names another
folder with the same layout; checkpoints and inputs always come from the recorded data beside the project.
"""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from vscan.methods import METHODS

sys.path.append(str(Path(__file__).parent))
from rivals.common import GOLDEN, RIVALS

if not GOLDEN.is_dir():
    pytest.skip(f"no recorded data: expected {GOLDEN.name} in `shared` beside the project", allow_module_level=True)


def entries(content: dict | list) -> Iterator[tuple[str, dict]]:
    """(name, entry) of every list of an index file: the name is that of its data file, or its own, or its number."""
    lists = {"case": content} if isinstance(content, list) else content
    for key, values in lists.items():
        for number, entry in enumerate(values if isinstance(values, list) else []):
            own = entry.get("name") or entry.get("case") or f"{key}_{number}"
            yield Path(entry["file"]).stem if "file" in entry else own, entry


def found_cases() -> Iterator:
    """One parameter set for every case of every registered method that has a folder."""
    for folder in sorted(RIVALS.iterdir()):
        if folder.name not in METHODS:
            continue
        has_checks = find_spec(f"rivals.{folder.name}") is not None
        module = import_module(f"rivals.{folder.name}") if has_checks else None
        for path in sorted([*folder.glob("cases*.json"), *folder.glob("func*.json")]):
            content = json.loads(path.read_text())
            cases = module.cases(path.stem, content).items() if hasattr(module, "cases") else entries(content)
            for name, case in cases:
                identity = f"{folder.name}-{path.stem}-{name}"
                yield pytest.param(module, path.stem, name, case, folder, id=identity)


CASES = list(found_cases())


def test_there_are_cases():
    assert CASES, f"no folder of {RIVALS} has the name of a registered method"


@pytest.mark.parametrize(("module", "index", "name", "case", "folder"), CASES)
def test_a_case_is_the_recorded_one(module, index, name, case, folder):
    assert module is not None, f"expected rivals/{folder.name}.py with check(index, name, case, folder)"
    module.check(index, name, case, folder)
