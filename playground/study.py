"""The paper's experiments on the embedded model, or on any LLaVA and any questions with answers:

    python -m playground.study NAME [--model-path DIR] [--data DIR] [--tokens 64] [--output DIR]

    layer      accuracy against the decoder layer before which tokens are pruned, at an equal average
    split      against the share of tokens that the global scan selects
    shallow    against the vision layer of the local scan
    merge      merging against dropping
    positions  renumbered against original positions
    attention  where [CLS] and the last prompt token look, layer by layer
    lens       at which decoder layer the answer settles
    all        all of these

Without --data the test split of the drawn benchmark is asked, --number scenes of it. A data folder holds images/ and
questions.jsonl as for `python -m vscan.compare`. Each study writes table.md, table.csv and NAME.png into OUTPUT/NAME;
the first five keep their answers in OUTPUT/answers and go on where they were stopped.
"""

from argparse import Namespace
from pathlib import Path

from vscan.eval.arguments import Parser, add, positive, run_command
from vscan.eval.questions import check_images, read_questions
from vscan.eval.scoring import check_answers

SWEEPS = ("layer", "split", "shallow", "merge", "positions")  # of `playground.studies.sweeps`, known before numpy is
HERE = Path(__file__).parent
NUMBER = 100


def parse(argv: list[str]) -> Namespace:
    parser = Parser(prog="python -m playground.study", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*SWEEPS, "attention", "lens", "all"])
    add(parser, "--model-path", type=Path, default=HERE / "models" / "tiny-llava", help="checkpoint folder")
    add(parser, "--data", type=Path, default=None, help="folder with questions.jsonl and images/; default: drawn")
    add(parser, "--number", type=positive, default=None, help=f"scenes to draw without --data; default: {NUMBER}")
    add(parser, "--tokens", type=positive, default=64, help="visual tokens, average over the decoder's layers")
    add(parser, "--output", type=Path, default=HERE / "out" / "study", help="folder for tables and pictures")
    add(parser, "--batch-size", type=positive, default=8, help="prompts at a time")
    return parser.parse_args(argv)


def sweep(setting, name: str, folder: Path) -> str:
    """One of the five that compare cells: table.md, table.csv and NAME.png in `folder`; returns the table."""
    from vscan.tools.compare import compare, weights_of

    from .studies.charts import plot_sweep
    from .studies.dense import depths_of
    from .studies.results import measure, write_tables
    from .studies.sweeps import build

    built = build(name, depths_of(setting.model), setting.tokens)
    rows = compare(
        lambda: (setting.tokenizer, setting.model, setting.image_processor),
        built.cells,
        setting.questions,
        setting.images,
        setting.output / "answers",
        setting.model_path.resolve().name,
        batch_size=setting.batch_size,
        model_path=str(setting.model_path.resolve()),
        weights=weights_of(setting.model_path),
    )
    points = measure(built, rows, setting.questions)
    text = write_tables(points, built, folder)
    plot_sweep(points, built, folder / f"{name}.png")
    return text


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible."""
    args = parse(argv)
    from llava.model.check import check_checkpoint

    from .scenes.files import write_benchmark

    check_checkpoint(args.model_path)
    data = args.data or args.output / "data"
    if args.data is None:
        write_benchmark(data, "test", args.number or NUMBER)
    elif args.number is not None:
        raise ValueError(f"expected --number for drawn scenes only, got --number {args.number} beside --data")
    questions = read_questions(data / "questions.jsonl")
    check_answers(questions)
    check_images(questions, data / "images")

    from llava.eval.answering import load_checked

    from .studies import attention, lens
    from .studies.dense import depths_of
    from .studies.setting import Setting
    from .studies.sweeps import build

    loaded = load_checked(str(args.model_path))
    setting = Setting(*loaded, args.model_path, data, questions, args.tokens, args.batch_size, args.output)
    names = [*SWEEPS, "attention", "lens"] if args.name == "all" else [args.name]
    for name in names:
        if name in SWEEPS:  # all budgets are checked before the first answer
            build(name, depths_of(setting.model), args.tokens)
    for name in names:
        folder = args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        runs = {"attention": attention.run, "lens": lens.run}
        text = runs[name](setting, folder) if name in runs else sweep(setting, name, folder)
        print(f"\n{name}\n\n{text}\ntable.md, table.csv and {name}.png lie in {folder}")


if __name__ == "__main__":
    run_command(main)
