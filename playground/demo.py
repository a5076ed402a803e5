"""The main job on what ships with the code: draw pictures, ask questions, answer them dense and reduced, compare.

The model is tiny and its weights are random, so its answers mean nothing; the tokens, the shares and the files are
real, made by the same command that runs LLaVA-1.5-7B.
"""

import json
import random
import shutil
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import vscan
from llava.eval.model_vqa_loader import main as answer
from llava.model.builder import load_model

from .tiny import build_checkpoint

OUT = Path(__file__).parent / "out"
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
VSCAN = ["--layer_list", "[4]", "--image_token_list", "[32]", "--visual_token_num", "96"]
RUNS = {  # what is compared: the flags after --method; averages over the 8 decoder layers are 64 tokens each
    "dense": [],
    "vscan": VSCAN,
    "vispruner": ["--visual_token_num", "64", "--important_ratio", "0.75"],
    "random": ["--visual_token_num", "64"],
    "downsample": ["--visual_token_num", "64"],
}


def draw(file: Path, seed: int) -> None:
    """Draw a picture of a few coloured shapes."""
    chance = random.Random(seed)
    image = Image.new("RGB", (chance.randrange(240, 480), chance.randrange(240, 480)), "grey")
    pen = ImageDraw.Draw(image)
    for _ in range(chance.randrange(3, 7)):
        x, y, side = chance.randrange(200), chance.randrange(200), chance.randrange(20, 90)
        shape = chance.choice((pen.ellipse, pen.rectangle))
        shape((x, y, x + side, y + side), fill=chance.choice(COLOURS))
    image.save(file)


def main(out: Path = OUT, num_pictures: int = 8) -> None:
    """Build the model and the questions, run every method, print one table and one prompt's statistics.

    Args:
        out: folder for everything that is made; begun anew.
        num_pictures: pictures to draw, one question each.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    build_checkpoint(out / "tiny-llava")
    questions = []
    for number in range(num_pictures):
        draw(out / "images" / f"{number}.png", seed=number)
        text = f"How many {COLOURS[number % 8]} shapes are there?\nAnswer the question using a single word or phrase."
        questions.append({"question_id": number, "image": f"{number}.png", "text": text})
    (out / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))

    table = []
    for name, flags in RUNS.items():
        file = out / f"{name}.jsonl"
        fixed = ["--model-path", out / "tiny-llava", "--question-file", out / "questions.jsonl", "--answers-file", file]
        fixed += ["--image-folder", out / "images", "--temperature", "0", "--max_new_tokens", "8", "--num-workers", "0"]
        method = [] if name == "dense" else ["--method", name]
        answer([str(flag) for flag in fixed + method + flags])
        answers = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        stats = [json.loads(line) for line in Path(f"{file}.stats.jsonl").read_text().splitlines()]
        table.append((name, answers, stats))

    dense = table[0][1]
    print(f"\n{'method':<11}{'visual tokens from layer':<27}{'as dense':>9}{'ms a row':>10}")
    for name, answers, stats in table:
        stages = ", ".join(f"{layer}: {tokens}" for layer, tokens in stats[0]["stages"])
        same = sum(mine == theirs for mine, theirs in zip(answers, dense, strict=True))
        # The first row also pays for setting up.
        seconds = sorted(row["seconds"] for row in stats[1:])[(len(stats) - 1) // 2]
        print(f"{name:<11}{stages:<27}{f'{same}/{len(dense)}':>9}{1000 * seconds:>10.1f}")

    model = load_model(out / "tiny-llava", device="cpu")
    with vscan.reduce(model, visual_tokens=96, layers={4: 32}) as reduction:
        model.generate(torch.tensor([[1, 5, -200, 6, 7]]), images=torch.zeros(1, 3, 336, 336), max_new_tokens=2)
    print(f"\n{reduction.stats()}\n\nAnswers, their statistics and the tiny model lie in {out}")


if __name__ == "__main__":
    main()
