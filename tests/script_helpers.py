"""What the tests of the scripts share: which there are, and how one is run."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from two_processes import run_two

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
BENCHMARKS = ["gqa", "vqav2", "sqa", "vizwiz", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "mmvet", "seed"]
OFFICIAL = {"docvqa": "val_v1.0_withQT.json", "infovqa": "infographicsVQA_val_v1.0_withQT.json"}
BENCHMARKS += OFFICIAL  # whose question files are made of these, unless they are there
VIDEOS = ["activitynet", "msrvtt", "msvd", "tgif"]
FAMILIES = {"llava1_5": [], "llava1_6": [], "qwen2_5_vl": [], "video_llava": []}
FAMILIES |= {"v1_5": ["64", "0.75"], "v1_6": ["32", "0.5"]}
OURS = ("DATA", "MODELS", "MODEL", "OUT", "METHOD", "BUDGET", "LAYER", "LIMIT", "DRY", "PYTHON", "CUDA_VISIBLE_DEVICES")
ALL = [(family, name) for family in FAMILIES if family != "video_llava" for name in BENCHMARKS]
ALL += [("qwen2_5_vl", "refcoco"), *(("video_llava", name) for name in VIDEOS)]


def script_of(family: str, name: str) -> Path:
    return Path("scripts") / family / ("eval" if family.startswith("v1") else "") / f"{name}.sh"


def bash(project: Path, *command, **variables) -> subprocess.CompletedProcess:
    """Run bash with these variables and none of ours besides; `python` is this one."""
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    plain["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), plain["PATH"]])
    environment = {**plain, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(
        ["bash", *map(str, command)], env=environment, capture_output=True, text=True, check=False, cwd=project
    )


def dry(project: Path, family: str, name: str, *arguments, **variables) -> list[list[str]]:
    """The commands that a script would run, each as its words."""
    given = {"DRY": 1, "PYTHON": "python", **variables}
    done = bash(project, script_of(family, name), *(arguments or FAMILIES[family]), **given)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def run_here(printed: str) -> None:
    """Run the commands that a dry run printed, in this process; what torchrun would start, in two forks of it."""
    for line in printed.splitlines():
        _, module, *words = shlex.split(line)
        if module == "-m":
            module, *words = words
        module = module.removesuffix(".py").replace("/", ".")
        if module == "torch.distributed.run":
            from torch.distributed.run import get_args_parser

            given = get_args_parser().parse_args(words)
            assert (given.standalone, given.nproc_per_node, given.module) == (True, "2", True)
            done = run_two("forks", given.training_script, given.training_script_args)
            assert done.returncode == 0, done.stderr
        else:
            importlib.import_module("vscan.eval.__main__" if module == "vscan.eval" else module).main(words)


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]
