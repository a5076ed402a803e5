"""At which layer the answer settles: every layer's state, read as if it were the last one's (VScan, Fig. 4).

For the last prompt token, y_k = argmax lm_head(norm(h_k)) after decoder layer k. What is reported of every layer is the
share of questions with y_k = y_last, and with y_k = the right answer's. Where all right answers of a kind begin alike
(a box with its bracket), the prompt goes on to where they can differ.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llava.conversation import build_prompt
from llava.eval.answering import Preparation
from llava.mm_utils import tokenizer_image_token
from vscan.eval.chart import COLOURS, GREY, MARKERS
from vscan.eval.scoring import is_box
from vscan.eval.table import NO_CATEGORY
from vscan.select.attention import device_of

from .charts import new_figure, shade, tidy
from .dense import Parts, Reader, preparation
from .layers import Means, means_of, write_tables
from .setting import Setting

ALL = "all questions"


@torch.inference_mode()
def likeliest(model, states: Tensor) -> Tensor:
    """The token that each state stands for: final norm, head, argmax.

    Args:
        states: [layers, B, D].

    Returns:
        Long [layers, B], on the CPU.
    """
    norm = Parts.of(model).decoder.norm
    normed = norm(states.to(device_of(norm)))
    return model.lm_head(normed.to(device_of(model.lm_head))).argmax(-1).cpu()


def answer_ids(question: dict, prepare: Preparation) -> list[list[int]]:
    """The ids of each of the right answers to a question, where they follow its prompt."""
    answer = question["answer"]
    if is_box(answer):
        answer = f"[{', '.join(f'{value:.2f}' for value in answer)}]"
    texts = [answer] if isinstance(answer, str) else answer
    has_image = bool(question.get("image"))
    before = build_prompt(question["text"], prepare.conv_mode, prepare.mm_use_im_start_end, has_image)
    start = len(tokenizer_image_token(before, prepare.tokenizer))
    return [tokenizer_image_token(f"{before} {text}", prepare.tokenizer)[start:] for text in texts]


def openings(answers: list[list[list[int]]], kinds: Sequence[str]) -> dict[str, int]:
    """How many ids all right answers of a kind begin with alike; one that can differ is always left."""
    shared = {}
    for kind in dict.fromkeys(kinds):
        of_kind = [ids for of_question, k in zip(answers, kinds, strict=True) if k == kind for ids in of_question]
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*of_kind, strict=False))
        shared[kind] = min(len(list(alike)), min(map(len, of_kind)) - 1)
    return shared


def settle(setting: Setting, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Run the model.

    Args:
        kinds: of the questions.

    Returns:
        bool [layers, questions] twice: as the last layer says, and as the answer goes on.
    """
    reader, prepare = Reader(setting), preparation(setting)
    answers = [answer_ids(question, prepare) for question in setting.questions]
    shared = openings(answers, kinds)
    same, right = [], []
    for start in range(0, len(setting.questions), setting.batch_size):
        rows = range(start, min(start + setting.batch_size, len(setting.questions)))
        prompts = []
        for row in rows:
            prompt = prepare(setting.questions[row])
            prompts.append(replace(prompt, ids=prompt.ids + answers[row][0][: shared[kinds[row]]]))
        tokens = likeliest(setting.model, reader.states(prompts))  # layers B
        same.append((tokens == tokens[-1]).numpy())
        goes_on = [{ids[shared[kinds[row]]] for ids in answers[row]} for row in rows]
        right.append(
            np.array([[token in ids for token, ids in zip(layer, goes_on, strict=True)] for layer in tokens.tolist()])
        )
    return np.concatenate(same, axis=1), np.concatenate(right, axis=1)


def by_kind(flags: np.ndarray, kinds: Sequence[str], clusters: Sequence) -> dict[str, Means]:
    """Percent of the questions of each kind, and of all, by layer: {kind: [layers]}.

    Args:
        flags: bool [layers, questions].
        kinds, clusters: of the questions.
    """
    names, values = np.array(kinds), 100 * flags.T.astype(float)
    distinct = list(dict.fromkeys(kinds))
    shares = {ALL: means_of(values, clusters)}
    for name in distinct if len(distinct) > 1 else []:
        shares[name] = means_of(np.where((names == name)[:, None], values, np.nan), clusters)
    return shares


def plot(agree: dict[str, Means], right: dict[str, Means], file: Path) -> None:
    """Both shares against the layer, a line a kind, each with its interval."""
    figure = new_figure(12.5, 4.6)
    titles = ("same token as after the last layer (%)", "token of the right answer (%)")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, shares in zip(panels, titles, (agree, right), strict=True):
        for number, (kind, means) in enumerate(shares.items()):
            style = {"color": "black", "linewidth": 2.4, "zorder": 3}
            if number:
                style = {"color": COLOURS[number - 1], "marker": MARKERS[number - 1], "linewidth": 1.3, "alpha": 0.8}
            axes.plot(means.values, label=kind if axes is panels[0] else None, markersize=5, **style)
            shade(axes.fill_between, means, style["color"], 0.08 if number else 0.2)
        axes.set_ylim(-3, 103)
        axes.set_xticks(range(0, len(means.values), max(1, len(means.values) // 8)))
        axes.set_title("bands: 95 % intervals", fontsize=9, color=GREY)
        tidy(axes, "after decoder layer", title)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file)


def run(setting: Setting, folder: Path) -> str:
    """The study: table.md, table.csv and lens.png in `folder`; returns the table."""
    kinds = [question.get("category", NO_CATEGORY) for question in setting.questions]
    clusters = [question.get("image") or row for row, question in enumerate(setting.questions)]
    agree, right = (by_kind(flags, kinds, clusters) for flags in settle(setting, kinds))
    both = {"as last": agree, "right": right}
    measures = {f"{kind}: {what}": means for what, shares in both.items() for kind, means in shares.items()}
    note = "Percent of the questions whose likeliest token after a layer is the last layer's, or the right answer's.\n"
    text = write_tables({"layer": measures}, note, folder)
    plot(agree, right, folder / "lens.png")
    return text
