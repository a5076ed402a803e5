"""Help and wrong flags of every command: at once, so without torch, and in words."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vscan
from playground import study
from playground.scenes import __main__ as scenes_command
from playground.scenes.world import SPLITS
from playground.studies.sweeps import SWEEPS
from vscan.eval.arguments import Parser, add_generation_arguments, add_reduction_arguments, parse
from vscan.tools import bench, bench_qwen, profile

ROOT = Path(__file__).resolve().parents[3]
MODULES = [
    *(f"llava.eval.{name}" for name in ("model_vqa", "model_vqa_loader", "model_vqa_mmbench", "model_vqa_science")),
    *(f"llava.eval.{name}" for name in ("model_vqa_video", "run_inference_video_qa", "run_inference_video_qa_act")),
    *(f"llava.eval.{name}" for name in ("eval_pope", "eval_science_qa", "eval_textvqa")),
    *(f"qwen.eval.{name}" for name in ("model_vqa_loader", "model_vqa_mmbench", "model_vqa_science", "test_refcoco")),
    *(f"vscan.{name}" for name in ("compare", "plot", "profile", "selfcheck", "eval")),
    *(f"playground.{name}" for name in ("demo", "study", "train", "scenes")),
    "llava.model.convert",
    "benchmarks.clips",
    "benchmarks.received",
]
SCRIPTS = sorted(f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py"))

# All commands in one process: none may import what is slow, so the first that does is named.
RUN = """
import contextlib, io, json, runpy, sys
slow, found = {"torch", "transformers", "matplotlib"}, {}
for command, arguments in json.loads(sys.stdin.read()):
    sys.argv = [command, *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if command.endswith(".py"):
                runpy.run_path(command, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        said = stop.code, out.getvalue(), err.getvalue()
        found[" ".join([command, *arguments])] = (*said, sorted(slow & set(sys.modules)))
print(json.dumps(found))
"""


def run(commands: list) -> dict[str, tuple[int, str, str, list[str]]]:
    """{command line: exit code, stdout, stderr, slow modules}."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_shows_its_help_without_torch():
    helps = [[command, ["--help"]] for command in (*MODULES, *SCRIPTS)]
    helps += [["llava.eval.model_vqa_loader", ["--help", "--method", method]] for method in vscan.METHODS]
    found = run(helps)
    assert len(found) == len(helps)
    for command, (code, out, err, slow) in found.items():
        assert (code, err, slow) == (0, "", []), command
        assert out.startswith("usage: "), command
        assert "--help" in out, command
    for method in ("vscan", "vispruner", "fastervlm", "random"):  # downsample has none
        assert f"hyper-parameters of {method}:" in found[f"llava.eval.model_vqa_loader --help --method {method}"][1]


def test_every_command_is_under_the_guard_and_listed_here():
    folders = ("vscan", "llava", "qwen", "playground", "scripts", "benchmarks")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    mains = {str(file.relative_to(ROOT)): text for file in files if '__main__":\n' in (text := file.read_text())}
    assert [name for name, text in mains.items() if "run_command(main)" not in text] in ([], ["benchmarks/kills.py"])
    listed = {name.replace(".", "/") + ".py" for name in MODULES} | set(SCRIPTS)
    listed |= {"vscan/eval/__main__.py", "playground/scenes/__main__.py"}
    assert {name for name in mains if not name.startswith("benchmarks/")} <= listed


ANSWERS = ["--model-path", "m", "--question-file", "q", "--answers-file", "a", "--image-folder", "i"]
RECEIVED = "expected width x height in pixels such as 1280x720, got 'big'"


def test_every_wrong_flag_is_one_line_without_torch():
    wrong = {
        (
            "llava.eval.model_vqa_loader",
            "--windo",
            "4",
        ): "unrecognized arguments: --windo 4 (hyper-parameters of vscan: ",
        ("llava.eval.model_vqa_loader", "--window", "6.5"): "--window: expected an int of at least 1, got '6.5'",
        ("llava.eval.model_vqa_loader", "--global-share", "3"): "expected a number in [0, 1], got '3'",
        ("llava.eval.model_vqa_loader", "--method", "fast"): "argument --method: invalid choice: 'fast'",
        ("llava.eval.model_vqa", "--visual_token_num", "many"): "expected a count such as 96 or a share such as 0.167",
        ("llava.eval.model_vqa", "--visual_token_num", "0"): "visual_tokens: expected a count of at least 1, got 0",
        ("llava.eval.model_vqa_science", "--layer_list", "16"): "--layer_list: expected a list such as '[16]', or None",
        ("llava.eval.model_vqa_science", "--layer_list", "[" * 5000): "--layer_list: expected a list such as '[16]'",
        (
            "qwen.eval.model_vqa_loader",
            "--method",
            "random",
            "--seed",
            "x",
        ): "--seed: expected an int in [0, 9223372036854775807], got",
        ("qwen.eval.model_vqa_loader", "--image-token-ratio", "2"): "expected a number in (0, 1], got '2'",
        ("qwen.eval.model_vqa_science", "--positions", "new"): "argument --positions: invalid choice: 'new'",
    }
    commands = [[command, [*ANSWERS, *more]] for command, *more in wrong]
    others = {
        ("vscan.profile", "--model", "small"): "argument --model: invalid choice: 'small'",
        ("vscan.profile", "--model", "llava-1.5-7b"): "expected either --model-path, or --model together with",
        ("vscan.plot", "a.png", "--model-path", "m", "--windw", "4"): "unrecognized arguments: --windw 4 (hyper-param",
        ("vscan.compare", "--model-path", "m", "--limit", "0"): "--limit: expected an int of at least 1, got '0'",
        ("vscan.eval", "pope", "--answers", "a"): "the following arguments are required: --data",
        ("llava.model.convert", "source"): "the following arguments are required: DST",
        ("vscan.eval", "pop"): "invalid choice: 'pop' (choose from ",
        ("playground.demo", "--fast"): "unrecognized arguments: --fast",
        ("playground.study", "depth"): "argument name: invalid choice: 'depth'",
        ("playground.train", "--scale", "0"): "--scale: expected a number above 0 and at most 10, got 0.0",
        ("playground.scenes", "--split", "x"): "argument --split: invalid choice: 'x'",
        ("benchmarks.received", "--image-size", "big"): RECEIVED,
        ("scripts/first_rows.py", "gqa", "--rows", "many"): "--rows: expected an int of at least 1, got 'many'",
        ("scripts/reduction_flags.py", "llava"): "argument family: invalid choice: 'llava'",
    }
    commands += [[command, more] for command, *more in others]
    found = run(commands)
    for (command, *_), (_, out, err, slow), message in zip(
        commands, found.values(), [*wrong.values(), *others.values()], strict=True
    ):
        assert message in err, command
        assert (err[:7], err.count("\n"), out, slow) == ("error: ", 1, "", []), command
    assert {code for code, *_ in found.values()} == {2}


def test_names_that_help_shows_before_their_modules_are_imported_are_right():
    assert list(profile.LLAVA) == list(bench.MODELS)
    assert list(profile.QWEN) == list(bench_qwen.MODELS)
    assert list(study.SWEEPS) == list(SWEEPS)
    assert list(scenes_command.SPLITS) == list(SPLITS)


# ------------------------------------------------------------------------------------------- a method's own flags

METHOD = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar, Literal
import nothing_like_this  # as torch, it is not there when help is shown

@dataclass(frozen=True)
class Base:
    """A base.

    Args:
        rounds: how many rounds,
            at 100 %.
    """
    rounds: int = 3
    shared: float = 0.5

@dataclass(frozen=True)
class Sample(Base):
    """A method.

    Args:
        layer: where; None is nowhere.
        shared: another default.
        layers_read: which.
    """
    constant: ClassVar[int] = 3
    shared: float = -1.5
    layer: int | None = None
    layers_read: tuple[int, ...] = (1, 2)
    kind: Literal["one", "other"] = "one"
    name: "str" = "5"
    merge: bool = True
'''


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Puts a method's source into `METHODS` as "sample"."""

    def put(source: str) -> None:
        (tmp_path / "sample_method.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(vscan.METHODS, "sample", "sample_method:Sample")

    yield put
    sys.modules.pop("sample_method", None)


def parsed(*arguments) -> dict:
    """The hyper-parameters that a command line gives to the method "sample"."""
    parser = Parser(prog="command", add_help=False)
    add_reduction_arguments(parser)
    return parse(parser, ["--method", "sample", *arguments])[1]


def test_fields_of_every_annotation_are_flags(register):
    register(METHOD)
    assert parsed() == {}
    given = ["--layer", "4", "--layers-read", "[3, 5]", "--kind", "other", "--name", "7", "--no-merge", "--rounds", "9"]
    expected = {"layer": 4, "layers_read": (3, 5), "kind": "other", "name": "7", "merge": False, "rounds": 9}
    assert parsed(*given, "--shared", "-2") == expected | {"shared": -2.0}
    assert parsed("--layer", "None", "--layers_read", "7,") == {"layer": None, "layers_read": (7,)}
    assert "nothing_like_this" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "four"], "argument --layer: expected an int or None, got 'four'"),
        (["--layer", "4.5"], "argument --layer: expected an int or None, got '4.5'"),
        (["--layers_read", "4"], "argument --layers_read/--layers-read: expected a tuple of ints, got '4'"),
        (["--layers_read", "[4, 'x']"], "expected a tuple of ints, got \"[4, 'x']\""),
        (["--kind", "third"], "argument --kind: expected one of 'one', 'other', got 'third'"),
        (["--rounds", "True"], "argument --rounds: expected an int, got 'True'"),
        (["--merge", "no"], "unrecognized arguments: no"),
    ],
)
def test_a_value_of_another_kind_is_refused(register, capsys, arguments, message):
    register(METHOD)
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


def test_help_is_what_the_docstring_says(register, capsys):
    register(METHOD)
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--rounds ROUNDS how many rounds, at 100 %; default: 3" in shown
    assert "--shared SHARED another default; default: -1.5" in shown
    assert "--layer LAYER where; None is nowhere; default: None" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("layers: int = 3", "method 'sample': field 'layers': expected a name other than model, method, "),
        ("method: str = ''", "method 'sample': field 'method': expected a name other than model, method, "),
        ("positions: str = ''", "method 'sample': field 'positions': expected a name other than model, method, "),
        ("device: str = ''", "method 'sample': field 'device': expected another name than a flag's"),
        ("odd: dict = None", "method 'sample': field 'odd': expected int, float, bool, str, one of these or None, "),
    ],
)
def test_a_field_that_cannot_be_a_flag_is_refused_by_name(register, line, message):
    register(f"from dataclasses import dataclass\n@dataclass\nclass Sample:\n    {line}\n")
    parser = Parser(prog="command", add_help=False)
    add_generation_arguments(parser, 8)
    add_reduction_arguments(parser)
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(parser, ["--method", "sample", "--model-path", "m"])


def test_a_field_without_a_default_must_be_given(register, capsys):
    register("from dataclasses import dataclass\n@dataclass\nclass Sample:\n    share: float\n")
    assert parsed("--share", "0.5") == {"share": 0.5}
    with pytest.raises(SystemExit):
        parsed()
    assert capsys.readouterr().err == "error: the following arguments are required: --share (see --help)\n"
