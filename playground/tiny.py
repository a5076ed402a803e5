"""A LLaVA small enough to run anywhere, with random weights, in the original checkpoint format, and pictures for it."""

import json
import random
from pathlib import Path

import sentencepiece
import torch
from PIL import Image, ImageDraw
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from vscan.compat import CLIPImageProcessorPil

# Enough text for a vocabulary of some hundred pieces; what it says does not matter.
TEXT = """A chat between a curious user and an artificial intelligence assistant.
The assistant gives helpful, detailed, and polite answers to the user's questions.
USER: What is in the picture? ASSISTANT: A red circle beside a blue square on a grey ground.
USER: How many green triangles are there? Answer the question using a single word or phrase. ASSISTANT: Two
USER: Is the yellow star left of the black ring? ASSISTANT: No
"""

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")


def build_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a checkpoint: Llama (8 layers, 64 wide), a CLIP tower (8 blocks, 24 x 24 patches) and a tokenizer.

    Args:
        folder: where it goes; the tower lies inside, in `clip_tower`.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    corpus.write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",  # both as Llama's own
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **special, "model_max_length": 2048}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vision = CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=8,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
            initializer_factor=4.0,
        )
        tower = CLIPVisionModel(vision)
        config = LlavaConfig(
            vocab_size=sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).get_piece_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=2048,
            initializer_range=0.2,
            pad_token_id=0,
            mm_hidden_size=vision.hidden_size,
            mm_projector_type="mlp2x_gelu",
            mm_vision_select_layer=-2,
            mm_vision_select_feature="patch",
            mm_vision_tower="clip_tower",
            image_aspect_ratio="pad",
        )
        model = LlavaLlamaForCausalLM(config)
    model.save_pretrained(folder)
    tower.save_pretrained(folder / "clip_tower")
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(
        folder / "clip_tower"
    )


def draw(file: Path, seed: int) -> None:
    """Draw a picture of a few coloured shapes, of any size and proportion."""
    chance = random.Random(seed)
    image = Image.new("RGB", (chance.randrange(240, 480), chance.randrange(240, 480)), "grey")
    pen = ImageDraw.Draw(image)
    for _ in range(chance.randrange(3, 7)):
        x, y, side = chance.randrange(200), chance.randrange(200), chance.randrange(20, 90)
        shape = chance.choice((pen.ellipse, pen.rectangle))
        shape((x, y, x + side, y + side), fill=chance.choice(COLOURS))
    image.save(file)
