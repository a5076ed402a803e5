"""Run a question file through a model: prepare in worker processes, answer in batches, write every batch at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shortuuid
from tqdm import tqdm

from .records import AnswersFile


class Prepared:
    """The questions as a dataset: `prepare` runs in a worker process.

    A question that cannot be prepared becomes its error, so that the rows before it are written first.
    """

    def __init__(self, questions: list[dict], prepare: Callable[[dict], Any]):
        self.questions, self.prepare = questions, prepare

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int):
        try:
            return self.prepare(self.questions[index])
        except (OSError, ValueError) as error:
            return error


@dataclass(frozen=True)
class Answer:
    """What a model said to one question, and what it cost (plain values)."""

    text: str
    stats: dict


def run(
    questions: list[dict],
    answers: AnswersFile,
    model_id: str,
    prepare: Callable[[dict], Any],
    answer: Callable[[list[Any]], list[Answer]],
    batch_size: int = 1,
    num_workers: int = 0,
) -> None:
    """Answer the questions that have no row yet, in order.

    Args:
        questions: all questions of this answers file.
        answers: where rows go.
        model_id: what the rows call the model.
        prepare: from a question to what `answer` takes; must be picklable.
        answer: from a batch of prepared questions to their answers.
        batch_size: prompts at a time.
        num_workers: processes that prepare; 0 prepares in turn.

    Raises:
        ValueError: for a question that cannot be prepared; the rows before it are written.
    """
    from torch.utils.data import DataLoader  # questions and flags are checked before torch is imported

    todo = questions[answers.num_done :]
    workers = min(num_workers, len(todo))
    batches = DataLoader(Prepared(todo, prepare), batch_size=batch_size, num_workers=workers, collate_fn=list)
    with tqdm(total=len(questions), initial=answers.num_done, unit="row") as progress:
        for number, items in enumerate(batches):
            rows = todo[number * batch_size : (number + 1) * batch_size]
            broken = next((i for i, item in enumerate(items) if isinstance(item, Exception)), len(items))
            if broken:
                start = time.perf_counter()
                replies = answer(items[:broken])
                seconds = round((time.perf_counter() - start) / broken, 6)
                answers.append(
                    [_row(question, reply.text, model_id) for question, reply in zip(rows, replies, strict=False)],
                    [{**reply.stats, "seconds": seconds} for reply in replies],
                )
                progress.update(broken)
            if broken < len(items):
                raise ValueError(f"question {rows[broken]['question_id']}: {items[broken]}") from items[broken]


def _row(question: dict, text: str, model_id: str) -> dict:
    """An answers row: exactly the published keys, in their order."""
    return {
        "question_id": question["question_id"],
        "prompt": question["text"],
        "text": text,
        "answer_id": shortuuid.uuid(),
        "model_id": model_id,
        "metadata": {},
    }
