"""The tokenizer of the embedded models: sentencepiece, trained on the benchmark's own text, with bytes for the rest."""

import io
import json
from pathlib import Path

import numpy as np
import sentencepiece

from llava.conversation import build_prompt

from .scenes.questions import LOCATE, SHORT, coordinate, for_training
from .scenes.world import GLYPHS, GRID, draw_scene
from .training.sizes import VOCABULARY

SPACE = "\u2581"  # as sentencepiece writes it
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def fixed_pieces() -> list[str]:
    """Pieces that are there whatever the text: letters of signs, coordinates, and what every prompt repeats.

    One piece for a whole instruction keeps prompts short, which is what training time goes into.
    """
    system = build_prompt("", "vicuna_v1", False, False).split(" USER:")[0]
    pieces = [
        *GLYPHS,
        *map(coordinate, range(GRID + 1)),
        "[",
        "]",
        ", ",
        system,
        " USER:",
        " ASSISTANT:",
        SHORT,
        LOCATE,
    ]
    return [piece.replace(" ", SPACE) for piece in pieces]


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.model and its two configs into a checkpoint folder. The same every time."""
    chance = np.random.default_rng(0)
    scenes = [draw_scene(chance) for _ in range(400)]
    prompts = [
        build_prompt(question.text, "vicuna_v1", False, True) + f" {question.answer}"
        for scene in scenes
        for question in for_training(scene, chance, num_counts=1)
    ]
    # From memory to memory: sentencepiece would note the names of its files in the model.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for prompt in prompts for line in prompt.splitlines()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=fixed_pieces(),
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **SPECIAL, "model_max_length": 2048}))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
