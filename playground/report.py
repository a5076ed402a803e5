"""What the demo leaves to look at: one page with the table, the picture and kept tokens on a few scenes."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.answering import Answering, Preparation
from vscan.api import apply_config
from vscan.eval.cells import Row
from vscan.eval.table import WEIGHTS, Summary, texts
from vscan.io.images import read_image
from vscan.tools.plot import overlay

from .scenes.world import GRID

ENLARGED = 10 * GRID  # pixels along a side of a picture on the page
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.dense td { font-weight: 600; border-bottom: 2px solid #888 }
.wide { overflow-x: auto }
figure { margin: 0 } figcaption { font-size: 13px; max-width: 240px }
.row { display: flex; flex-wrap: wrap; gap: 14px; margin: .6rem 0 1.6rem }
.right { color: #00695c } .wrong { color: #b3261e }
img { max-width: 100% } .row img { image-rendering: pixelated; width: 150px; height: 150px }
"""


@dataclass(frozen=True)
class Sight:
    """One cell's answer to one question, with what it kept of the picture.

    Args:
        name: of the cell.
        kept: a picture for every stage.
        answer: what it said.
        is_right: whether that is right.
    """

    name: str
    kept: list[Image.Image]
    answer: str
    is_right: bool


def interesting(rows: Sequence[Row], questions: list[dict], number: int = 4) -> list[int]:
    """Questions that the dense model answers and about half of the cells do not, each of another kind and picture."""
    dense = next(row for row in rows if row.cell.reduction is None)
    cells = [row for row in rows if row is not dense]

    def surprise(index: int) -> float:
        right = sum(bool(row.correct[index]) for row in cells)
        return abs(right - len(cells) / 2) + (0 if dense.correct[index] else len(cells))

    chosen: list[int] = []
    for index in sorted(range(len(questions)), key=surprise):
        others = [questions[other] for other in chosen]
        fresh = all(questions[index][key] not in [other[key] for other in others] for key in ("category", "image"))
        if fresh and len(chosen) < number:
            chosen.append(index)
    return chosen


def look(loaded: tuple, folder: Path, question: dict, row: Row, index: int) -> Sight:
    """Answer one question once more, to see what a cell keeps of its picture."""
    tokenizer, model, image_processor = loaded
    picture = read_image(folder / question["image"]).resize((ENLARGED, ENLARGED), Image.NEAREST)
    kept = [picture]
    if row.cell.reduction is not None:
        reduction = apply_config(model, row.cell.reduction, tokenizer)
        try:
            prompt = Preparation.of(model, tokenizer, image_processor, str(folder), "vicuna_v1", reduction=reduction)(
                question
            )
            Answering(tokenizer, model, reduction, do_sample=False, max_new_tokens=1)([prompt])
            first = prompt.ids.index(IMAGE_TOKEN_INDEX)
            stages = range(len(row.stages))
            columns = [reduction.kept(stage)[0].tolist() for stage in stages]
        finally:
            reduction.remove()
        tokens = [[column - first for column in stage if 0 <= column - first < GRID**2] for stage in columns]
        kept = [overlay(picture, (GRID, GRID), {"kept": stage}) for stage in tokens]
    return Sight(row.cell.name, kept, row.answers[index], bool(row.correct[index]))


def embedded(picture: Image.Image | Path) -> str:
    """An <img> with the picture inside."""
    data = io.BytesIO()
    if isinstance(picture, Path):
        data.write(picture.read_bytes())
    else:
        picture.save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="">'


def table(summaries: Sequence[Summary]) -> str:
    """The comparison as an HTML table."""
    header, *lines = texts(summaries)
    rows = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>"]
    for summary, line in zip(summaries, lines, strict=True):
        kind = "" if summary.cell.reduction else ' class="dense"'
        rows.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>")
    return '<div class="wide"><table>' + "".join(rows) + "</table></div>"


def scene(question: dict, sights: list[Sight]) -> str:
    """One question with what every cell kept and said."""
    text, answer = question["text"].split("\n")[0], question["answer"]
    parts = [f"<h3>{html.escape(text)} <small>({question['category']}; right: {html.escape(str(answer))})</small></h3>"]
    parts.append('<div class="row">')
    for sight in sights:
        mark, kind = ("✓", "right") if sight.is_right else ("✗", "wrong")
        pictures = "".join(map(embedded, sight.kept))
        said = f'<span class="{kind}">{mark} {html.escape(sight.answer) or "nothing"}</span>'
        parts.append(f"<figure>{pictures}<figcaption>{html.escape(sight.name)}: {said}</figcaption></figure>")
    return "".join(parts) + "</div>"


def write_report(file: Path, title: str, summaries: Sequence[Summary], chart: Path, scenes: list[str]) -> None:
    """Write the page; it holds its pictures and needs no network."""
    note = (
        f"Accuracy in percent per kind of question. {WEIGHTS} The difference is paired, question by question, with its "
        "95 % interval. Pictures: what is left of the visual tokens at each stage, dropped patches dimmed."
    )
    body = [f"<h1>{html.escape(title)}</h1><p>{note}</p>", table(summaries)]
    body += ["<h2>Accuracy against visual tokens</h2>", f'<div style="max-width: 860px">{embedded(chart)}</div>']
    body += ["<h2>What is kept, and what is then said</h2>", *scenes]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
    file.write_text(page, encoding="utf-8")
