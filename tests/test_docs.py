"""What README.md and CONTRIBUTING.md show is run as it stands there, on a tiny model."""

import re
from pathlib import Path

import pytest
import torch
from helpers import pictures, prompt, tiny_llava, to_hugging_face
from PIL import Image
from qwen_helpers import image, inputs_of, tiny_qwen
from transformers import CLIPImageProcessorPil, LlavaProcessor

import vscan
from llava.eval.model_vqa_loader import main
from llava.model.builder import load_model
from llava.tokenizer import load_tokenizer
from playground.tiny import draw
from vscan.models import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_the_snippet_of_the_readme_runs_and_prints_what_it_kept(checkpoint, tmp_path, capsys):
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    original = load_model(checkpoint, device="cpu")
    original.resize_token_embeddings(image_token + 1, mean_resizing=False)
    model = to_hugging_face(original, image_token)
    model.generation_config.suppress_tokens = [image_token]
    processor = LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(checkpoint / "clip_tower"),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    draw(tmp_path / "0.png", seed=0)

    snippet, _ = blocks("README.md", "python")
    lines = snippet.splitlines()
    assert len(lines) <= 10
    given = {"image": Image.open(tmp_path / "0.png"), "model": model, "processor": processor}
    # Loading is left out (nothing is downloaded), and the tiny model has 8 layers.
    run = [line for line in lines if "from_pretrained" not in line]
    exec("\n".join(run).replace("{16: 32}", "{4: 32}"), given)
    assert "576 visual tokens: 96 from layer 0, then 32 from layer 4" in capsys.readouterr().out
    assert given["reduction"].kept(0).shape[1] - given["reduction"].kept(1).shape[1] == 64


def test_the_snippet_for_qwen_runs():
    _, snippet = blocks("README.md", "python")
    inputs = inputs_of([[1, image(6, 6), 5, 6]])
    given = {"vscan": vscan, "model": tiny_qwen(), "inputs": inputs}
    exec(snippet.replace("{14: 0.333}", "{2: 0.333}"), given)  # the tiny model has 4 layers
    assert given["reduction"].stats().rows[0].stages == [[0, 6], [2, 1]]
    assert given["output"].shape[1] - inputs["input_ids"].shape[1] == 32


def test_the_method_of_the_contributing_guide_works_as_a_file_and_a_line(checkpoint, tmp_path, monkeypatch):
    source, _ = blocks("CONTRIBUTING.md", "python")
    source = source.replace("from ..", "from vscan.").replace("from .base", "from vscan.methods.base")
    (tmp_path / "norm.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(vscan.METHODS, "norm", "norm:Norm")
    draw(tmp_path / "0.png", seed=0)
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "image": "0.png", "text": "?"}\n')
    fixed = ["--model-path", checkpoint, "--question-file", tmp_path / "q.jsonl", "--image-folder", tmp_path]
    fixed += ["--answers-file", tmp_path / "a.jsonl", "--temperature", "0", "--max_new_tokens", "2", "--device", "cpu"]
    command = re.search(r"`(--method norm .*?)`", (ROOT / "CONTRIBUTING.md").read_text())[1]
    main([*map(str, fixed), *command.split(), "--num-workers", "0"])
    assert '"stages": [[0, 64]]' in (tmp_path / "a.jsonl.stats.jsonl").read_text()


def test_the_model_of_the_contributing_guide_keeps_and_says_what_llava_does(tmp_path, monkeypatch):
    _, source = blocks("CONTRIBUTING.md", "python")
    source = source.replace("from ..", "from vscan.").replace("from .", "from vscan.models.")
    (tmp_path / "one_view.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    model = tiny_llava(num_layers=4, vision_layers=4, side=8)
    ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, 7]], 64)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}
    found = []
    for family in (FAMILIES["llava"], "one_view:OneView"):
        monkeypatch.setitem(FAMILIES, "llava", family)
        with vscan.reduce(model, visual_tokens=20, layers={2: 5}, local_layer=1) as reduction:
            found.append((model(**inputs).logits, reduction.stats()))
            assert type(reduction.family).__module__ == family.partition(":")[0]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_flags_table_and_the_help_name_the_same_flags(capsys):
    table = (ROOT / "README.md").read_text().split("| flag |")[1].split("\n\n")[0]
    documented = {flag.replace("_", "-") for flag in re.findall(r"`(--[\w-]+)`", table)}
    shown = set()
    for method in vscan.METHODS:
        with pytest.raises(SystemExit):
            main(["--help", "--method", method])
        help_text = capsys.readouterr().out
        shown |= {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[\w-]+", help_text)}
    in_the_command = {"--model-path", "--question-file", "--image-folder", "--answers-file"}
    assert shown - documented == {*in_the_command, "--help", "--model-base"}
    assert documented <= shown


def test_the_make_targets_and_files_that_the_documents_name_exist():
    for file in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / file).read_text()
        for target in re.findall(r"\bmake ([\w-]+)(?=[` ]{1,4})", text):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            assert (ROOT / link).exists(), link
