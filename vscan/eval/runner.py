"""Run a question file through a model: prepare in worker processes, answer in batches, write every batch at once.

run             some questions, by one process
answer_file     all that an answers file lacks, by all processes
"""

import sys
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shortuuid
from tqdm import tqdm

from .ranks import Ranks
from .records import AnswersFile, Part


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


def cut(rows: list[int], batch_size: int, keys: list[Hashable]) -> list[list[int]]:
    """Put rows into batches, those of one key together: in one batch, where it holds so many.

    Args:
        rows: row numbers.
        batch_size: rows of a batch, at most.
        keys: one for every row; where all differ, batches are full and rows stay in order.
    """
    groups = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    batches = []
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            if not batches or len(batches[-1]) + len(part) > batch_size:
                batches.append([])
            batches[-1] += part
    return batches


@dataclass(frozen=True)
class Answer:
    """What a model said to one question, and what it cost (plain values)."""

    text: str
    stats: dict


def run(
    questions: list[dict],
    todo: list[int],
    answers: Part,
    model_id: str,
    prepare: Callable[[dict], Any],
    answer: Callable[[list[Any]], list[Answer]],
    batch_size: int = 1,
    num_workers: int = 0,
    skip: bool = False,
    show_progress: bool = True,
    together: str | None = None,
    row: Callable[[dict, str, str], dict] | None = None,
) -> None:
    """Answer some questions, in order.

    Args:
        questions: all questions.
        todo: the row numbers of those to answer.
        answers: where rows go.
        model_id: what the rows call the model.
        prepare: from a question to what `answer` takes; must be picklable.
        answer: from a batch of prepared questions to their answers.
        batch_size: prompts at a time.
        num_workers: processes that prepare; 0 prepares in turn.
        skip: note a question that cannot be prepared, and go on.
        show_progress: draw a bar.
        together: a key of the questions, such as "image": those that have the same there are answered together, and
            rows are written in that order (`AnswersFile.merge` puts them in theirs).
        row: from question, answer and model_id to a row of the answers file; None is `answer_row`.

    Raises:
        ValueError: for a question that cannot be prepared, unless it is skipped; the rows before it are written.
        OSError: if rows cannot be written.
    """
    from torch.utils.data import DataLoader  # questions and flags are checked before torch is imported

    row_of = row or answer_row
    keys = todo if together is None else [questions[row].get(together) for row in todo]
    batches = cut(todo, batch_size, keys)
    workers = min(num_workers, len(todo))
    # Forked workers notice that their process was killed, and go too; those of a fork server would stay for ever.
    context = "fork" if workers else None
    loader = DataLoader(
        Prepared(questions, prepare),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=context,
    )
    with tqdm(total=len(todo), unit="row", disable=not show_progress) as progress:
        for rows, items in zip(batches, loader, strict=True):
            broken = [i for i, item in enumerate(items) if isinstance(item, Exception)]
            whole = [i for i in range(len(items)) if i not in broken and (skip or not broken or i < broken[0])]
            if whole:
                start = time.perf_counter()
                replies = answer([items[i] for i in whole])
                seconds = round((time.perf_counter() - start) / len(whole), 6)
                pairs = [(rows[i], reply) for i, reply in zip(whole, replies, strict=True)]
                answers.append(
                    [row_of(questions[row], reply.text, model_id) for row, reply in pairs],
                    [{"row": row, **reply.stats, "seconds": seconds} for row, reply in pairs],
                )
            for i in broken:
                question_id = questions[rows[i]]["question_id"]
                if not skip:
                    raise ValueError(f"row {rows[i]}, question {question_id}: {items[i]}") from items[i]
                answers.skip(rows[i], question_id, items[i])
            progress.update(len(items))


def answer_row(question: dict, text: str, model_id: str) -> dict:
    """A row of an answers file: exactly the published keys, in their order."""
    return {
        "question_id": question["question_id"],
        "prompt": question["text"],
        "text": text,
        "answer_id": shortuuid.uuid(),
        "model_id": model_id,
        "metadata": {},
    }


def answer_file(
    file: str | Path,
    config: dict,
    questions: list[dict],
    answer: Callable[[list[int], Part], None],
    ranks: Ranks,
    skip: bool = False,
) -> AnswersFile | None:
    """Answer all questions that an answers file lacks, each by one of the processes, and say what is left.

    Args:
        file: the answers file; begun or continued.
        config: plain values, whatever decides the answers.
        questions: all of them.
        answer: answers the rows of these numbers into this part; called where there are some for this process.
        ranks: the processes; each of them calls this.
        skip: questions that cannot be prepared may be left.

    Returns:
        The file, open, for rank 0; None for others.

    Raises:
        ValueError: for a file that was begun with another configuration, and whatever `answer` raises.
        OSError: if rows are missing that were not to be skipped.
    """
    answers = todo = None
    if ranks.rank == 0:
        answers = AnswersFile(file, config)
        todo = answers.todo(questions)
    todo = ranks.share(todo)
    shard = ranks.shard(todo)
    if shard:
        part = answers if ranks.num_ranks == 1 else Part.of_rank(file, ranks.rank, ranks.num_ranks)
        answer(shard, part)
        if part is not answers:
            part.close()
    ranks.share()
    if answers is not None:
        answers.merge()
        _say_what_is_left(answers, questions, bool(todo), skip)
    return answers


def _say_what_is_left(answers: AnswersFile, questions: list[dict], had_some: bool, skip: bool) -> None:
    left = answers.todo(questions)
    if left and not skip:
        raise OSError(f"{answers.file}: expected {len(questions)} rows, {len(left)} are missing; run it again")
    if left:
        print(
            f"{answers.file}: {len(left)} of {len(questions)} rows were skipped, see {answers.skipped_file.name}; "
            f"the same command tries them again",
            file=sys.stderr,
        )
    elif not had_some:
        print(f"{answers.file}: {len(questions)} rows, nothing left to answer")
