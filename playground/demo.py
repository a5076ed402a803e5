"""The main job on what ships with the code: the embedded model answers 200 drawn questions, dense and reduced.

Every method at 192, 128 and 64 visual tokens, averaged over the decoder's layers, in one table; the same with pictures
in playground/out/report.html.
"""

import shutil
from pathlib import Path

from vscan.eval.arguments import Parser, run_command
from vscan.eval.questions import read_questions
from vscan.tools.compare import cell_at, compare, report

HERE = Path(__file__).parent
MODEL = HERE / "models" / "tiny-llava"
METHODS = ("vscan", "vispruner", "fastervlm", "random", "downsample")
TOKENS = (192, 128, 64)
BATCH_SIZE = 24


def main(argv: list[str], out: Path = HERE / "out", num_questions: int = 200, model_path: Path = MODEL) -> None:
    """Draw, answer, print the table and one prompt's statistics, write the report.

    Args:
        argv: no arguments are known.
        out: folder for what is made; what an earlier demo left there is replaced.
        num_questions: six about each scene.
        model_path: a checkpoint.
    """
    epilog = "It takes no arguments; python -m vscan.compare does the same with a model and questions of yours."
    Parser(prog="python -m playground.demo", description=__doc__.splitlines()[0], epilog=epilog).parse_args(argv)

    import torch

    import vscan
    from llava.eval.answering import Preparation
    from llava.model.builder import load_pretrained_model
    from vscan.eval.cells import Cell
    from vscan.eval.table import summarise

    from .report import interesting, look, scene, write_report
    from .scenes.files import write_benchmark

    data, answers = out / "scenes", out / "demo"
    for folder in (data, answers):
        shutil.rmtree(folder, ignore_errors=True)
    write_benchmark(data, "test", -(-num_questions // 6))
    questions = read_questions(data / "questions.jsonl")[:num_questions]
    loaded = load_pretrained_model(model_path, device="cpu")[:3]
    model = loaded[1]
    size, reductions = (model.config.num_hidden_layers, model.tokens_per_view), getattr(model.config, "reduction", {})
    cells = [Cell("dense")]
    cells += [cell_at(method, tokens, *size, reductions.get(method)) for method in METHODS for tokens in TOKENS]
    rows = compare(lambda: loaded, cells, questions, data / "images", answers, "tiny-llava", batch_size=BATCH_SIZE)
    print("\n" + report(rows, questions, answers))

    shown = [row for row in rows if row.cell.tokens in (None, TOKENS[-1])]
    scenes = []
    for index in interesting(shown, questions):
        sights = [look(loaded, data / "images", questions[index], row, index) for row in shown]
        scenes.append(scene(questions[index], sights))
    title = f"{num_questions} questions, {len(METHODS)} methods: what is left when visual tokens go"
    write_report(out / "report.html", title, summarise(rows, questions), answers / "accuracy.png", scenes)

    tokenizer, model, image_processor = loaded
    prompt = Preparation.of(model, tokenizer, image_processor, str(data / "images"), "vicuna_v1")(questions[0])
    with vscan.reduce(model, average=64) as reduction:
        model.generate(torch.tensor([prompt.ids]), images=prompt.pixels, max_new_tokens=2)
    print(f"one prompt at an average of 64 visual tokens: {reduction.stats()}\n")
    print(f"The table with pictures: {out / 'report.html'}; all answers: {answers}")


if __name__ == "__main__":
    run_command(main)
