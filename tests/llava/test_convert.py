"""Converted checkpoints: stock transformers loads them, and every answer stays what it was."""

import json
import os
import random
import shutil

import pytest
import sentencepiece
import torch
from pairwise import pairwise
from PIL import Image, ImageDraw
from run_helpers import error_of
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
)

import vscan
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import build_prompt
from llava.eval.answering import Answering, Preparation
from llava.mm_utils import expand_image_tokens, tokenizer_image_token
from llava.model.builder import load_model, load_pretrained_model
from llava.model.conversion import convert
from llava.model.convert import main
from llava.model.multimodal_encoder.builder import PREFIX
from llava.tokenizer import load_tokenizer
from playground.tiny import TEXT

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # the square one is the dearest by far
REDUCTION = {"vscan": {"local_layer": 3}}
QUESTIONS = ["What is this?", "Is there a dog?\nAnswer the question using a single word or phrase.", "Où est le 猫 12?"]
UDS = ("Answer▁the▁question▁using▁a▁single▁word▁or▁phrase.", "yes", "\n", "a user")


def change(folder, **values):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


def train_tokenizer(folder, kind="bpe", rule="identity", user_defined=()):
    """Give a checkpoint another tokenizer; by default one that leaves texts as they are, as Llama's does."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXT + "two  spaces,   three spaces\ncafé 猫\n").splitlines() * 4),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=350 if kind == "unigram" else 400,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=list(user_defined),
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()


def rewrite(folder, kind, tower_inside, extra):
    """Write the weights of a checkpoint anew: as "safetensors" or "bin", in one file or "sharded ..."."""
    weights = load_file(folder / "model.safetensors") | extra
    if tower_inside:
        tower = load_file(folder / "clip_tower" / "model.safetensors")
        weights |= {f"{PREFIX}vision_model.{n.removeprefix('vision_model.')}": v * 1.5 for n, v in tower.items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as old checkpoints have it
    (folder / "model.safetensors").unlink()
    stem, suffix = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if "sharded" in kind else [names]
    weight_map = {}
    for index, part in enumerate(parts, 1):
        file = f"{stem}.{suffix}" if len(parts) == 1 else f"{stem}-{index:05}-of-00002.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        save = torch.save if suffix == "bin" else lambda tensors, path: save_file(tensors, path, {"format": "pt"})
        save({name: weights[name] for name in part}, folder / file)
    if len(parts) > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def build(source, folder, version, kind, tower):
    """Make of a tiny checkpoint one of LLaVA "1.5" or "1.6", its tower "inside" its weights or "beside" its folder."""
    shutil.copytree(source, folder)
    train_tokenizer(folder)
    change(folder, reduction=REDUCTION)
    extra = {}
    if version == "1.6":
        pinpoints = PINPOINTS if tower == "inside" else PINPOINTS[:2]
        change(folder, image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=pinpoints)
        extra = {"model.image_newline": torch.randn(64, generator=torch.Generator().manual_seed(1))}
    rewrite(folder, kind, tower == "inside", extra)
    if tower == "beside":
        change(folder, mm_vision_tower="openai/clip_tower")
        shutil.move(folder / "clip_tower", folder.parent / "clip_tower")
    return folder


KINDS = [
    ("1.5", "safetensors", "beside"),
    ("1.5", "sharded bin", "inside"),
    ("1.6", "sharded safetensors", "inside"),
    ("1.6", "bin", "beside"),
]


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def pair(request, built_small, tmp_path_factory):
    """Two folders: an original checkpoint and what it was converted to, in several shards."""
    src = build(built_small, tmp_path_factory.mktemp("models") / "original", *request.param)
    dst = src.parent / "converted"
    convert(src, dst, shard_bytes=500_000)
    return src, dst


@pytest.fixture(scope="module")
def small(built_small, tmp_path_factory):
    return build(built_small, tmp_path_factory.mktemp("models") / "original", "1.5", "safetensors", "inside")


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "original")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of a square, a wide and a tall picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(300, 300), (500, 260), (250, 410)]):
        image, chance = Image.new("RGB", size, "grey"), random.Random(number)
        for colour in ("red", "blue", "yellow", "white"):
            x, y, side = chance.randrange(200), chance.randrange(200), chance.randrange(30, 90)
            ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=colour)
        image.save(folder / f"{number}.png")
    return folder


def without_bytes(model):
    """Let a model with random weights answer in text: stock decoders differ for bytes that are no UTF-8."""
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [*(model.generation_config.suppress_tokens or ()), *range(259)]
    return model


def answers(folder, pictures, reduced, num_new=5):
    """Answers to the questions by the commands' own path, and the logits of the last one's prompt."""
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), device="cpu")
    without_bytes(model)
    applied = vscan.apply(model, "vscan", 96, {4: 32}) if reduced else None
    prepare = Preparation.of(model, tokenizer, processor, str(pictures), "vicuna_v1", reduction=applied)
    questions = [{"text": text, "image": f"{number}.png"} for number, text in enumerate(QUESTIONS)]
    if not reduced:
        del questions[0]  # the square picture, of the most views; the logits are compared for it
    answering = Answering(tokenizer, model, applied, do_sample=False, max_new_tokens=num_new)
    prompts = [prepare(question) for question in questions]
    if applied is not None:
        assert applied.method.local_layer == 3
    rows = [answer for prompt in prompts for answer in answering([prompt])]
    return [row.text for row in rows], [row.stats["stages"] for row in rows]


# What a dense model answers, and that every kind of file is read whole, the stock classes show below.
@pytest.mark.parametrize("reduced", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["reduced", "dense"])
@pytest.mark.parametrize(
    "pair",
    [pytest.param(kind, marks=pytest.mark.slow if "beside" in kind else ()) for kind in KINDS],
    ids=" ".join,
    indirect=True,
)
def test_both_formats_give_the_same_answers(pair, pictures, reduced):
    texts, stages = answers(pair[0], pictures, reduced)
    assert answers(pair[1], pictures, reduced) == (texts, stages)
    assert len(set(texts)) > 1


def stock(folder, **kwargs):
    model = AutoModelForImageTextToText.from_pretrained(folder, **kwargs).eval()
    return model, AutoProcessor.from_pretrained(folder)


def test_stock_model_and_processor_give_the_logits_and_answers_of_the_original(pair, pictures):
    tokenizer, original, image_processor, _ = load_pretrained_model(str(pair[0]), device="cpu")
    model, processor = stock(pair[1])
    without_bytes(original), without_bytes(model)
    assert type(processor).__name__ == {"llava": "LlavaProcessor"}.get(model.config.model_type, "LlavaNextProcessor")
    prepare = Preparation.of(original, tokenizer, image_processor, str(pictures), "vicuna_v1")
    vocab_size = original.config.vocab_size
    for number, text in enumerate(QUESTIONS):
        prompt = prepare({"text": text, "image": f"{number}.png"})
        given = {"images": [prompt.pixels], "image_sizes": [prompt.image_size]}
        ids = torch.tensor([prompt.ids])
        inputs = processor(
            text=build_prompt(text, "vicuna_v1"), images=Image.open(pictures / f"{number}.png"), return_tensors="pt"
        )
        length = original.image_length(len(prompt.pixels), prompt.image_size)
        assert inputs["input_ids"][0].tolist() == expand_image_tokens(prompt.ids, model.config.image_token_id, length)
        difference = (inputs["pixel_values"].flatten(0, -4) - prompt.pixels).abs()
        if model.config.model_type == "llava":
            assert difference.max() < 1e-6
        else:  # stock crops are resized by Pillow alone, whose order of directions is not always the published one
            assert difference.mean() < 1e-3
        inputs["pixel_values"] = prompt.pixels.view_as(inputs["pixel_values"])
        with torch.no_grad():
            expected, got = original(ids, **given).logits, model(**inputs).logits
        torch.testing.assert_close(got[..., :vocab_size], expected, atol=1e-5, rtol=1e-5)
        assert got[..., vocab_size:].amax(-1).lt(expected.amax(-1)).all(), "a new token would be the likeliest"
        if number != 1:
            continue
        options = {"do_sample": False, "max_new_tokens": 8}
        new = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        assert new.tolist() == original.generate(ids, **given, **options).tolist()
        assert processor.batch_decode(new) == tokenizer.batch_decode(new)


def test_weights_are_copied_in_shards_that_the_index_names(pair):
    index = json.loads((pair[1] / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    assert {path.name for path in pair[1].glob("*.safetensors")} == set(files)
    stored = {name: value for file in files for name, value in load_file(pair[1] / file).items()}
    assert sum(value.numel() * 4 for value in stored.values()) == index["metadata"]["total_size"]
    sizes = [(pair[1] / file).stat().st_size for file in files]
    assert max(sizes) < 500_000 + 20_000, "with its header"
    model = stock(pair[1])[0]
    config = model.config
    rows, image = config.text_config.vocab_size, config.image_token_id
    assert (rows % 64, image) == (0, load_model(pair[0], device="cpu").config.vocab_size)
    weight = model.lm_head.weight
    torch.testing.assert_close(weight[image:], weight[:image].mean(0).expand(rows - image, -1))
    assert model.generation_config.suppress_tokens == list(range(image, rows))
    assert config.reduction == REDUCTION


def test_the_dtype_of_every_tensor_is_kept(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    half = {name: value if name.startswith(PREFIX) else value.half() for name, value in weights.items()}
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    change(copy, torch_dtype="float16", dtype=None)
    convert(copy, tmp_path / "converted")
    stored = load_file(tmp_path / "converted" / "model.safetensors")
    of_tower = {value.dtype for name, value in stored.items() if name.startswith("vision_tower.")}
    assert of_tower == {torch.float32}
    assert {value.dtype for name, value in stored.items() if not name.startswith("vision_tower.")} == {torch.float16}
    assert {parameter.dtype for parameter in stock(tmp_path / "converted")[0].parameters()} == {torch.float16}
    assert load_model(tmp_path / "converted", device="cpu").dtype == torch.float32


def test_a_tower_may_be_a_whole_clip_and_its_settings_old(built_small, tmp_path, pictures):
    """As openai/clip-vit-large-patch14-336 is: text tower, projections, and sizes that are ints."""
    src = build(built_small, tmp_path / "original", "1.5", "safetensors", "beside")
    folder = tmp_path / "clip_tower"
    vision = CLIPVisionConfig.from_pretrained(folder).to_dict()
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shutil.rmtree(folder)
    CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 9})).save_pretrained(folder)
    settings = {"crop_size": 336, "size": 336, "resample": 3, "do_center_crop": True, "do_normalize": True}
    settings |= {"do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor"}
    mean = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | mean))
    convert(src, tmp_path / "converted")
    assert answers(tmp_path / "converted", pictures, reduced=False) == answers(src, pictures, reduced=False)
    pixels = stock(tmp_path / "converted")[1].image_processor(Image.open(pictures / "1.png"))["pixel_values"]
    assert pixels[0].shape == (3, 336, 336)


def test_the_settings_of_generation_are_carried_over(copy, tmp_path):
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 77, "_from_model_config": True}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    convert(copy, tmp_path / "with")
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "with").generation_config
    assert (config.max_length, config.eos_token_id, config.pad_token_id) == (77, 2, 0)
    (copy / "generation_config.json").unlink()
    convert(copy, tmp_path / "without")
    config = AutoModelForImageTextToText.from_pretrained(tmp_path / "without").generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.suppress_tokens


def test_the_chat_template_is_vicuna_v1(small, tmp_path):
    convert(small, tmp_path / "converted")
    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    question = [{"type": "text", "text": 'What?\nIt\'s "x" \\n.'}, {"type": "image"}]
    messages = [{"role": "user", "content": question}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == build_prompt(question[0]["text"], "vicuna_v1")
    messages += [{"role": "assistant", "content": "Red"}, {"role": "user", "content": "Sure?"}]
    longer = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert longer == text + " Red</s>USER: Sure? ASSISTANT:"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(system) == "Be brief. USER: Hi "
    picture = Image.new("RGB", (40, 30), "red")
    messages[0]["content"][1]["image"] = picture
    tokenize = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(messages, **tokenize)
    ids = tokenizer_image_token(longer, load_tokenizer(small))
    expected = expand_image_tokens(ids, processor.tokenizer.convert_tokens_to_ids("<image>"), 144)
    assert inputs["input_ids"][0].tolist() == expected


def texts(number, seed=0):
    """Prompts and worse: spaces of every kind, bytes, marks, names of bytes, pieces that are never split."""
    parts = [
        "the",
        "The",
        " ",
        "  ",
        "\n",
        "\t",
        "▁",
        "café",
        "猫",
        "🐈",
        "<0x41>",
        "<",
        "s>",
        "\x00",
        "12",
        "345",
        "ﬁ",
    ]
    parts += ["e\u0301", "yes", "yesyes", "USER: ", " ASSISTANT:", "a user", "red circle", "</s>", "<unk>"]
    parts += ["Answer the question using a single word or phrase.", "\nAnswer the question using a single word"]
    chance = random.Random(seed)
    return QUESTIONS + ["".join(chance.choices(parts, k=chance.randrange(8))) for _ in range(number)]


@pytest.mark.parametrize(
    ("kind", "rule", "user_defined", "legacy"),
    pairwise(["bpe", "unigram"], ["identity", "nmt_nfkc"], [(), UDS], [False, True]),
)
def test_the_ids_are_those_of_sentencepiece(copy, tmp_path, kind, rule, user_defined, legacy):
    train_tokenizer(copy, kind, rule, user_defined)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": legacy}))
    reference = sentencepiece.SentencePieceProcessor(str(copy / "tokenizer.model"))
    change(copy, vocab_size=reference.get_piece_size())
    weights = load_file(copy / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.zeros(reference.get_piece_size(), 64)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    convert(copy, tmp_path / "converted")
    original, stock = load_tokenizer(copy), AutoTokenizer.from_pretrained(tmp_path / "converted")
    for text in texts(300):
        assert stock(text).input_ids == original(text).input_ids, repr(text)
        plain = not any(mark in text for mark in ("</s>", "<unk>"))
        if plain and (legacy or rule == "identity"):  # elsewhere `llava.tokenizer` has ids of its own
            assert stock(text).input_ids == [1, *reference.encode(text)], repr(text)
        both = f"{text}<image>{text}"
        image = stock.convert_tokens_to_ids("<image>")
        assert stock(both).input_ids == expand_image_tokens(tokenizer_image_token(both, original), image, 1)
    if user_defined:
        prompt = build_prompt("What?\nAnswer the question using a single word or phrase.", "vicuna_v1")
        assert reference.piece_to_id(UDS[0]) in stock(prompt).input_ids
    assert stock("<image>", add_special_tokens=False).input_ids == [reference.get_piece_size()]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_vision_tower": None, "model_type": "llama"}, "expected a config with mm_vision_tower"),
        ({"model_type": "llava_mistral"}, "model types llava, llava_llama .* got model_type 'llava_mistral'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type: expected 'mlp2x_gelu', got 'linear'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature: expected 'patch' or none"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: expected False or none, got True"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio: expected 'pad' or 'square' or 'anyres' or none"),
        (
            {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672]]},
            "mm_patch_merge_type: expected 'spatial_unpad', got None",
        ),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer: expected a layer of -9 to 8 .*, got None"),
        ({"mm_vision_tower": "nowhere"}, "mm_vision_tower 'nowhere': expected a folder"),
        ({"num_hidden_layers": 7}, r"expected no weight language_model\.model\.layers\.7\..* by its config"),
        ({"num_hidden_layers": 9}, r"expected 9 more weights, such as \['language_model\.model\.layers\.8\."),
        ({"vocab_size": 500}, r"weight: expected 500 rows, the vocab_size, got 400"),
    ],
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(copy, tmp_path, values, message):
    change(copy, **values)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(copy, tmp_path / "converted")
    assert sorted(tmp_path.iterdir()) == before


def test_an_interrupted_run_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("llava.model.conversion.write_settings", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(small, tmp_path / "converted")
    assert os.listdir(tmp_path) == []


def test_a_broken_weights_file_is_named_and_leaves_nothing(copy, tmp_path):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected plain weights, got SafetensorError"):
        convert(copy, tmp_path / "converted")
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: expected plain weights, got UnpicklingError"):
        convert(copy, tmp_path / "converted")
    assert os.listdir(tmp_path) == ["original"]


def test_what_is_there_is_not_touched_but_an_empty_folder_and_leftovers_are_used(small, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name}': expected an empty folder or none, something is there"):
            convert(small, tmp_path / name)
    assert os.listdir(tmp_path / "full") == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    (tmp_path / ".empty.partial").mkdir()
    (tmp_path / ".empty.partial" / "shard-0.safetensors").write_text("of a run that was killed")
    main([str(small), str(tmp_path / "empty")])
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full"]
    assert not list((tmp_path / "empty").glob("shard-*"))


def test_the_command_says_what_it_does_and_what_is_wrong(small, tmp_path, monkeypatch, capsys):
    main([str(small), str(tmp_path / "converted")])
    out = capsys.readouterr().out
    assert "shard 1: 214 tensors, 0.00 GB, 100% done" in out
    error = error_of(main, [str(tmp_path / "converted"), str(tmp_path / "again")], monkeypatch, capsys)
    assert error.startswith("error: SRC ")
    assert "mm_vision_tower: expected 'a vision tower (the original format)', got None" in error
    assert sorted(os.listdir(tmp_path)) == ["converted"]


def test_an_image_is_one_id_in_the_original_and_a_token_here(small, tmp_path):
    convert(small, tmp_path / "converted")
    model = load_model(tmp_path / "converted", device="cpu")
    assert model.config.image_token_id == len(load_tokenizer(small))
    assert tokenizer_image_token("<image>", load_tokenizer(tmp_path / "converted"))[-1] == IMAGE_TOKEN_INDEX
