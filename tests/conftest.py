"""Fixtures shared by all tests: one thread, no network, no deprecation, a tiny checkpoint, where recorded data lies."""

import copy
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Half of the usual examples, on a machine that may be busy, and nothing kept of a run.
settings.register_profile("short", max_examples=50, deadline=None, database=None)
settings.load_profile("short")

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models run faster on one thread, and two test runs beside each other do not fight."""
    import torch

    torch.set_num_threads(1)


class Deprecations(logging.Handler):
    """Fails the test in which transformers logs a deprecation, by the words of `filterwarnings` in pyproject.toml.

    It fails in the middle of the call, so that the traceback names it, and `warning_once` takes it for unsaid.
    """

    def emit(self, record):
        message = record.getMessage()
        if re.search(r"is deprecated and will be removed in version|^Both `.*are set for", message):
            pytest.fail(f"transformers logged: {message}")


@pytest.fixture(scope="session", autouse=True)
def no_deprecations():
    """The logger of this name is the one that transformers will find, so that it need not be imported here."""
    handler = Deprecations(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


LOADED = {}  # weights that `weights_once` has read, by class, options and files


@pytest.fixture
def weights_once(monkeypatch):
    """What commands load again and again is read once; a model is a copy of it, unless a file of its folder changed."""
    import llava.model.builder
    import qwen.model.builder
    from vscan.io.weights import load_whole

    def load_or_copy(cls, folder, *given, **options):
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in Path(folder).iterdir())
        key = repr((cls, folder, files, given, options))
        if key not in LOADED:
            if len(LOADED) == 4:
                del LOADED[next(iter(LOADED))]
            LOADED[key] = load_whole(cls, folder, *given, **options)
        return copy.deepcopy(LOADED[key])

    for module in (llava.model.builder, qwen.model.builder):
        monkeypatch.setattr(module, "load_whole", load_or_copy)


@pytest.fixture(scope="module")
def rough_figures():
    """Figures are saved with a third of the pixels a side, where a test draws many and looks at none."""
    import matplotlib

    with matplotlib.rc_context({"savefig.dpi": 50}):
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of data recorded from the published code."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded data is not here: {GOLDEN.name} is expected in a folder `shared` beside the project")
    return GOLDEN


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A checkpoint in the original format with random weights: 24 x 24 tokens a picture."""
    from playground.tiny import build_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    build_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(built) -> Path:
    """The same; tests that change one copy it."""
    return built


@pytest.fixture(scope="session")
def built_small(built, tmp_path_factory) -> Path:
    """The same with 12 x 12 tokens a picture, which takes a quarter of the time; copied, not changed."""
    from small_tower import make_tower_small

    return make_tower_small(shutil.copytree(built, tmp_path_factory.mktemp("small") / "tiny-llava"))


@pytest.fixture(scope="module")
def small_checkpoint(built_small, tmp_path_factory) -> Path:
    """A copy of `built_small`, alone in its folder; a new one for every test file."""
    return shutil.copytree(built_small, tmp_path_factory.mktemp("models") / "tiny-llava")


def pytest_collection_modifyitems(items):
    """Short files come last, so that no worker is still busy with a long one when the others are done.

    Whole folders of them: of what needs no model.
    """
    short = ("tests/vscan/eval", "tests/vscan/io", "tests/vscan/select", "tests/vscan/test_config")
    items.sort(key=lambda item: item.nodeid.startswith(short))
