"""`python -m vscan.selfcheck`: what it prints for every family, and that it fails where code or a library is broken."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_qwen import build_checkpoint as build_qwen
from transformers import AttentionInterface, AttentionMaskInterface

from llava.model.conversion import convert
from vscan import decoder
from vscan.compat import LibraryChanged, attention_implementation
from vscan.eval.guard import run_command
from vscan.io.load import checkpoint_of
from vscan.methods import base
from vscan.methods.vscan import VScan
from vscan.prompt import Segment
from vscan.tools import selfcheck, selfcheck_model
from vscan.tools.selfcheck import QUESTIONS, main, prepared
from vscan.tools.selfcheck_model import Subject, batch, cache, checks, oracle

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED = ROOT / "playground" / "models" / "tiny-llava"
OPTIONS = {"device": "cpu", "dtype": "float32", "attn_implementation": None}
SMALL = [{**question, "size": size} for question, size in zip(QUESTIONS, [(308, 168), (168, 224)], strict=True)]
# Below the versions, on a Qwen2.5-VL: of 253 and 165 tokens 84 and 55 stay, then 28 and 18.
PRINTED = """ok     self-test: small copies of the model's parts give the same here and in transformers
ok     keep all: 0 of 4 tokens differ from dense, limit 0
ok     keep all: 0 of 1228 logits differ from dense in any bit, limit 0
ok     oracle: logits of 2 steps differ by up to # of the largest, limit 0.0001
ok     oracle: 0 of 46 tokens kept before layer 3 differ from those that it ranks first, limit 0
ok     batch: 0 of 185 kept tokens differ from a prompt alone, limit 0
ok     batch: logits differ by up to # of the largest from a prompt alone, of 2 that keep the same, limit 0.0001
ok     stages: 0.221 of the visual tokens on average over the layers, limit 0.244
ok     cache: 142 columns in the first and 86 in the last layer, of 311 dense; 0 layers differ from the stages, limit 0
ok     cache: 36.7% of the dense bytes; 0 bytes differ from the columns' share, limit 0
tiny-qwen: all 11 checks hold
"""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    build_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def subject(qwen):
    """A loaded Qwen2.5-VL and small pictures, dense whenever a test has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "QUESTIONS", SMALL)
        loaded = prepared(checkpoint_of(qwen), OPTIONS)
    return Subject(*loaded, layer=3, num_new=2)


def masked(text: str) -> str:
    """What is printed below the versions, without the numbers that are rounding."""
    return re.sub(r"\d\.\de[+-]\d\d", "#", text.partition("\n")[2])


def printed(capsys, folder, *more) -> str:
    main(["--model-path", str(folder), "--device", "cpu", "--max_new_tokens", "2", *more])
    return capsys.readouterr().out


def test_a_qwen_passes_every_check(qwen, capsys):
    text = printed(capsys, qwen)
    assert re.match(r"ok     versions: vscan \S+, torch \S+, transformers \S+; cpu, float32, sdpa\n", text)
    assert masked(text) == PRINTED


def test_a_llava_in_hugging_faces_format_passes(tmp_path):
    convert(EMBEDDED, tmp_path / "converted")
    it = Subject(
        *prepared(checkpoint_of(tmp_path / "converted"), {**OPTIONS, "attn_implementation": "eager"}), 5, num_new=2
    )
    lines = [*oracle(it), *cache(it)]
    assert [holds for holds, _ in lines] == [True] * 5
    assert lines[1][1].startswith("oracle: 0 of 128 tokens kept before layer 5 differ")
    assert lines[3][1].startswith("cache: 217 columns in the first and 89 in the last layer, of 601 dense; 0 layers")


def test_limits_are_wider_in_bfloat16_where_rounding_flips_tokens(qwen, monkeypatch, capsys):
    monkeypatch.setattr(selfcheck, "QUESTIONS", SMALL)
    lines = printed(capsys, qwen, "--dtype", "bfloat16").splitlines()
    assert lines[0].endswith("; cpu, bfloat16, sdpa")
    assert [line.rpartition(", limit ")[2] for line in lines[2:8]] == ["0", "0", "0.05", "0", "1", "0.05"]
    assert lines[-1] == "tiny-qwen: all 11 checks hold"


def test_a_llava_next_whose_pictures_have_two_and_three_crops_passes(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "next")
    config = json.loads((folder / "config.json").read_text())
    config |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 336], [336, 672]]}
    (folder / "config.json").write_text(json.dumps({**config, "mm_patch_merge_type": "spatial"}))
    it = Subject(*prepared(checkpoint_of(folder), OPTIONS), layer=4, num_new=1)
    lines = [*batch(it), *cache(it)]
    assert [holds for holds, _ in lines] == [True] * 5
    assert lines[3][1].startswith("cache: 475 columns in the first and 219 in the last layer, of 1243 dense; 0 layers")


def test_the_readme_shows_what_the_embedded_model_prints(capsys):
    main(["--model-path", str(EMBEDDED), "--device", "cpu"])
    shown = re.search(r"```\nok     versions.*?\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert masked(capsys.readouterr().out) == masked("\n" + shown[1])


def failures(subject) -> list[str]:
    """What the lines that fail begin with."""
    return [line.partition(" differ")[0] for holds, line in checks(subject) if not holds]


def wrapped(change):
    """From a function to one that changes what it gives."""
    return lambda original: lambda *given, **more: change(original(*given, **more))


def segment_with(**changes):
    """`Segment.shorten` with some of what it gives computed anew."""
    return wrapped(lambda found: (found[0], replace(found[1], **{name: f(found[1]) for name, f in changes.items()})))


def rolled_by_calls(original):
    """`VScan.encode` by scores that depend on the pictures before."""
    calls = []

    def encode(self, views, num):
        calls.append(num)
        rows = {layer: row.roll(len(calls), dims=-1) for layer, row in views.rows.items()}
        return original(self, replace(views, rows=rows), num)

    return encode


BROKEN = {
    "tokens that are attended to least": (
        (base, "prompt_rows", wrapped(lambda rows: -rows)),
        ["oracle: 12 of 12 tokens kept before layer 3"],
    ),
    "the query is another token than the last": (
        (Segment, "query", wrapped(lambda found: (found[0] - 3, found[1]))),
        [r"oracle: [1-9]\d* of 12 tokens kept before layer 3"],
    ),
    "what fills up a shorter row is seen": (
        (Segment, "shorten", segment_with(valid=lambda segment: None)),
        ["oracle: logits of 2 steps", r"oracle: [1-9]\d* of \d+ .*", "batch: .*"],
    ),
    "decoded tokens come later than they should": (
        (Segment, "shorten", segment_with(removed=lambda segment: segment.removed - 5)),
        ["oracle: logits of 2 steps"],
    ),
    "rotary embeddings are hardly others": (
        (decoder, "rotary_of", wrapped(lambda rotary: tuple(part * (1 + 2**-22) for part in rotary))),
        [r"keep all: [1-9]\d* of 1228 logits"],
    ),
    "a picture keeps what depends on those before it": (
        (VScan, "encode", rolled_by_calls),
        [r"batch: [1-9]\d* of 50 kept tokens"],
    ),
    "the statistics are not what the cache holds": (
        (decoder, "check_prefill", wrapped(lambda found: replace(found, lengths=[1 + n for n in found.lengths]))),
        ["cache: 80 columns in the first and 65 in the last layer, of 124 dense; 6 layers"],
    ),
    "nothing is pruned in the decoder": (
        (
            decoder.Decoder,
            "layer_prune",
            lambda original: lambda self, layer, hidden, segment, *_: (hidden, replace(segment, start=layer)),
        ),
        ["stages: 0.333 of the visual tokens on average over the layers, limit 0.244"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_fails_its_own_checks(subject, monkeypatch, what):
    (place, name, broken), failing = BROKEN[what]
    monkeypatch.setenv("VSCAN_SELFTEST", "0")  # it would say so first
    monkeypatch.setattr(place, name, broken(getattr(place, name)))
    found = failures(subject)
    assert len(found) == len(failing), found
    for got, pattern in zip(found, failing, strict=True):
        assert re.fullmatch(pattern, got)


def test_a_failure_is_the_last_line_and_exit_code_1(qwen, monkeypatch, capsys):
    monkeypatch.setattr(decoder, "check_step", lambda *given: 1 / 0)
    with pytest.raises(SystemExit) as caught:
        printed(capsys, qwen)
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [
        "FAILED keep all: ZeroDivisionError: division by zero",
        "FAILED oracle: ZeroDivisionError: division by zero",
    ]
    assert lines[-1] == "tiny-qwen: 2 of 9 checks FAILED"


def test_nothing_follows_a_self_test_that_fails(subject, monkeypatch):
    def fail(model):
        raise LibraryChanged("one thing", "another")

    monkeypatch.setattr(selfcheck_model, "check", fail)
    (_, versions), (holds, line) = checks(subject)
    assert versions.startswith("versions: vscan ")
    assert not holds
    assert line.startswith("self-test: LibraryChanged: expected one thing, got another: transformers ")


def test_a_self_test_that_was_left_out_is_said_to_be(subject, monkeypatch):
    monkeypatch.setenv("VSCAN_SELFTEST", "0")
    assert list(selfcheck_model.self_test(subject)) == [(True, "self-test: left out by VSCAN_SELFTEST=0")]


def test_the_oracle_runs_sdpa_where_the_models_attention_takes_no_mask(subject, monkeypatch):
    name = "sdpa_by_another_name"
    for kinds in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.setattr(kinds, "_global_mapping", {**kinds._global_mapping, name: kinds()["sdpa"]})
    text_model = subject.model.base_model.language_model
    text_model.set_attn_implementation(name)
    lines = list(oracle(subject))
    assert [holds for holds, _ in lines] == [True, True]
    assert lines[0][1].startswith(f"oracle (of sdpa, the model runs {name}): logits of 2 steps differ by up to ")
    assert attention_implementation(text_model) == name
    text_model.set_attn_implementation("sdpa")


def test_a_tower_that_is_too_small_for_the_layers_of_the_paper_is_read_where_it_can_be(subject, monkeypatch):
    monkeypatch.setattr(subject.model.config.vision_config, "fullatt_block_indexes", [3])
    with subject.reduced(0.5) as reduction:
        assert (reduction.method.local_layer, reduction.method.global_layer) == (0, -1)
    monkeypatch.setattr(subject.model.config, "reduction", {"vscan": {"local_layer": 7}}, raising=False)
    with pytest.raises(ValueError, match="expected one of 4 vision layers, got 7"), subject.reduced(0.5):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-path", "nowhere"], "error: model path 'nowhere': expected a checkpoint folder with config.json\n"),
        (["--model-path", "."], "error: model path '.': expected a checkpoint folder with config.json\n"),
        ([], "error: the following arguments are required: --model-path/--model_path (see --help)\n"),
        (["--model-path", "x", "--max_new_tokens", "0"], "expected an int of at least 1, got '0'"),
        (["--model-path", "x", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["selfcheck", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_is_judged_by_its_files_before_torch_is_imported(tmp_path):
    for family in ({"model_type": "qwen2_5_vl"}, {"model_type": "bert"}):
        (tmp_path / "config.json").write_text(json.dumps(family))
        code = f"""
import sys
from vscan.tools.selfcheck import main
try:
    main(["--model-path", {str(tmp_path)!r}])
except ValueError as error:
    print(error, "torch" in sys.modules)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert re.search(r"expected a config with .*got model_type '\w+' False$", run.stdout.strip())
