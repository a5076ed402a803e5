"""What transformers, accelerate and torch do not promise to keep is named in `vscan/compat.py`, and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

from vscan import compat

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vscan", "llava", "qwen", "playground", "scripts", "benchmarks")
ROOM = ROOT / "vscan" / "compat.py"
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file != ROOM)

# Modules of transformers whose names are documented.
PUBLIC = {"transformers", "transformers.modeling_outputs"}
# Attributes and keywords that are spelled out rather than imported.
SPELLED = {
    *compat.CACHE_NAMES[1:],
    compat.ENCODED,
    *("_hf_hook", "_old_forward", "kineto_results", "_from_config", "_attn_implementation"),
    *("create_causal_mask", "pack_image_features", "compute_3d_position_ids", "window_index", "cu_window_seqlens"),
    *("pre_layrnorm", "q_proj", "k_proj", "input_layernorm", "layer_norm1", "_can_record_outputs"),
}


def imports(tree: ast.AST):
    """(module, name) of every import; the name is None where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_other_file_names_what_is_private(file):
    source = file.read_text()
    tree = ast.parse(source)
    for module, name in imports(tree):
        package = module.partition(".")[0]
        if package == "transformers":
            assert module in PUBLIC, f"{module} is not documented"
            assert name not in compat._PLACES, f"{name} belongs into {ROOM.name}"
        assert package != "accelerate", f"{name} belongs into {ROOM.name}"
        assert not re.search(r"\._", module), f"{module} is private"
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.keyword):
            words.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words.add(node.value)
    assert sorted(words & SPELLED) == []


def test_every_name_of_the_table_is_where_it_says():
    for name in compat._PLACES:
        assert getattr(compat, name) is not None


def test_a_name_that_went_away_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(compat._PLACES, "capture_outputs", "transformers.utils.gone")
    with pytest.raises(compat.LibraryChanged, match=r"expected capture_outputs in transformers\.utils\.gone, got none"):
        _ = compat.capture_outputs
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = compat.other
