"""The environments that `make` builds, and the deprecations that fail the tests in each of them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers.utils import logging as transformers_logging
from transformers.utils.deprecation import deprecate_kwarg

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RANGES = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["project"]["dependencies"]}
BUILDS = {
    "setup": (".venv", ["pyproject.toml", "constraints.txt"]),
    "test-oldest": (".venv-oldest", ["pyproject.toml", "constraints-oldest.txt"]),
    "test-newest": (".venv-newest", ["pyproject.toml"]),
}
DEPRECATED = "`a` is deprecated and will be removed in version 99.0 for `call`."
BOTH = "Both `a` and `b` are set for `call`. Using `b=2` and ignoring deprecated `a=1`."


def make(folder, *arguments):
    """`make` alone in `folder`: the one that runs the tests hands its flags to no other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """A folder with the Makefile and the files that it builds from, empty, so that nothing can be installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in {name for _, names in BUILDS.values() for name in names}:
        (tmp_path / name).touch()
    return tmp_path


def interpreter(stub, version=(3, 11), status=3):
    """A Python that says it is of `version` and runs `-c`; what else it is called with it only notes."""
    source = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    stub.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{source}" "$2"\n'
        f'echo "$@" >> called\necho transformers==99.0\nexit {status}\n'
    )
    stub.chmod(0o755)
    return f"PYTHON={stub}"


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("target", BUILDS)
def test_a_python_that_is_too_old_is_refused_in_one_line_before_anything_is_made(folder, target):
    python = interpreter(folder / "stub", version=(3, 10, 4))
    before = {*folder.iterdir()}
    run = make(folder, target, python)
    assert run.returncode != 0
    assert run.stdout == ""
    said, *rest = run.stderr.splitlines()
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    expected = f"error: Python {oldest} or newer is expected, {folder}/stub is 3.10; make PYTHON=... chooses another"
    assert said == expected
    assert all(line.startswith("make: ***") for line in rest)
    assert {*folder.iterdir()} == before


@pytest.mark.parametrize(("target", "environment"), [(target, folder) for target, (folder, _) in BUILDS.items()])
def test_a_python_that_is_new_enough_makes_the_environment(folder, target, environment):
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    run = make(folder, target, interpreter(folder / "stub", version=tuple(map(int, oldest))))
    assert (folder / "called").read_text() == f"-m venv {environment}\n", run.stderr


@pytest.mark.parametrize("target", BUILDS)
def test_an_environment_is_built_anew_when_what_it_is_made_of_is_newer(folder, target):
    environment, sources = BUILDS[target]
    ready = folder / environment / ".ready"
    ready.parent.mkdir()
    ready.touch()
    for path in folder.iterdir():
        os.utime(path, (100, 100))
    for source in sources:
        os.utime(ready, (200, 200))
        assert make(folder, "--question", f"{environment}/.ready").returncode == 0
        os.utime(folder / source, (300, 300))
        assert make(folder, "--question", f"{environment}/.ready").returncode == 1
        os.utime(folder / source, (100, 100))


def test_clean_removes_every_environment(folder):
    for environment, _ in BUILDS.values():
        (folder / environment).mkdir()
    assert make(folder, "clean").returncode == 0
    assert not [*folder.glob(".venv*")]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_the_pins_are_exact_and_within_the_ranges(file):
    versions = pins(file)
    assert {"transformers", "tokenizers", "huggingface-hub", "numpy"} <= versions.keys()
    assert "torch" not in versions
    for name in versions.keys() & RANGES.keys():
        assert RANGES[name].contains(versions[name]), name


def test_transformers_is_pinned_at_both_ends_of_its_range():
    oldest, newest = (pins(file)["transformers"] for file in ("constraints-oldest.txt", "constraints.txt"))
    bounds = {bound.operator: bound.version for bound in RANGES["transformers"]}
    major, minor, _ = newest.split(".")
    assert re.fullmatch(rf"{re.escape(bounds['>='])}(\.0)?", oldest)
    assert bounds["<"] == f"{major}.{int(minor) + 1}"


def test_the_newest_libraries_are_all_that_we_depend_on_but_torch(folder):
    shutil.copy(ROOT / "pyproject.toml", folder)
    environment = folder / ".venv-newest"
    (environment / "bin").mkdir(parents=True)
    interpreter(environment / "bin" / "python", status=0)
    (environment / ".ready").touch()
    run = make(folder, "test-newest")
    assert run.returncode == 0, run.stderr
    install, _, tests = (folder / "called").read_text().splitlines()
    options = "--upgrade --upgrade-strategy eager --constraint .venv-newest/torch.txt "
    assert set(install.partition(options)[2].split()) == RANGES.keys() - {"torch"}
    assert (environment / "torch.txt").read_text() == f"torch=={metadata.version('torch')}\n"
    assert tests == "-m pytest -n auto --dist loadfile --no-loadscope-reorder -W error::FutureWarning"


@pytest.mark.parametrize("given", [{"a": 1}, {"a": 1, "b": 2}])
def test_a_deprecated_argument_fails_the_test(given):
    call = deprecate_kwarg("a", version="99.0", new_name="b")(lambda b: b)
    with pytest.raises(FutureWarning, match=r"is deprecated and will be removed in version|^Both `"):
        call(**given)


@pytest.mark.parametrize("message", [DEPRECATED, BOTH])
@pytest.mark.parametrize("say", ["warning", "warning_once"])
def test_a_logged_deprecation_fails_the_test_every_time(say, message):
    logger = transformers_logging.get_logger("transformers.models.llama.modeling_llama")
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="transformers logged: "):
            getattr(logger, say)(message)


def test_another_message_of_transformers_fails_nothing():
    logger = transformers_logging.get_logger("transformers.generation.utils")
    logger.warning("Both `a` and `b` seem to have been set.")
    logger.info(DEPRECATED)
