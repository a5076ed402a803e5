"""A project to run the scripts in."""

import shutil
from pathlib import Path

import pytest
from script_helpers import ROOT, SCRIPTS


@pytest.fixture(scope="session", autouse=True)
def project(tmp_path_factory) -> Path:
    """The scripts in a project of their own, beside which no data lie that would change what they print."""
    folder = tmp_path_factory.mktemp("scripts") / "project"
    shutil.copytree(SCRIPTS, folder / "scripts")
    (folder / "vscan").symlink_to(ROOT / "vscan")
    return folder
