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

from ..io.ranks import Ranks
from .preparing import Broken, Prepared, prepared
from .records import AnswersFile, Part


class Stopped(KeyboardInterrupt):
    """Ctrl-C while rows were answered; says how many there are."""


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
    check: Callable[[Any], None] | None = None,
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
        skip: note a question that cannot be prepared or answered, and go on.
        show_progress: draw a bar.
        together: a key of the questions, such as "image": those that have the same there are answered together, and
            rows are written in that order (`AnswersFile.merge` puts them in theirs).
        row: from question, answer and model_id to a row of the answers file; None is `answer_row`.
        check: raises ValueError for a prepared question that the model cannot take, before it is answered.

    Raises:
        ValueError: for a question that cannot be prepared or answered, unless it is skipped; the rows before it are
            written.
        OSError: if rows cannot be written, or a worker process is killed.
        Stopped: for Ctrl-C.
    """
    keys = todo if together is None else [questions[row].get(together) for row in todo]
    batches = cut(todo, batch_size, keys)
    from tqdm import tqdm  # help and refusals do without

    runner = _Runner(questions, answers, model_id, answer, skip, row or answer_row)
    try:
        with tqdm(total=len(todo), unit="row", disable=not show_progress) as progress:
            for rows, items in prepared(Prepared(questions, prepare), batches, min(num_workers, len(todo))):
                runner.batch(rows, items if check is None else [_checked(item, check) for item in items])
                progress.update(len(items))
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped after {answers.num_done} rows; the same command goes on") from error


def _checked(item, check: Callable[[Any], None]):
    if isinstance(item, Broken):
        return item
    try:
        check(item)
    except ValueError as error:
        return Broken.of(error)
    return item


@dataclass(frozen=True)
class _Runner:
    """Answers batches, and writes what comes of them."""

    questions: list[dict]
    answers: Part
    model_id: str
    answer: Callable[[list[Any]], list[Answer]]
    skip: bool
    row: Callable[[dict, str, str], dict]

    def batch(self, rows: list[int], items: list) -> None:
        """Answer one batch; `items` are prepared questions, or `Broken`."""
        broken = [i for i, item in enumerate(items) if isinstance(item, Broken)]
        whole = [i for i in range(len(items)) if i not in broken and (self.skip or not broken or i < broken[0])]
        if whole:
            self.answer_all([rows[i] for i in whole], [items[i] for i in whole])
        for i in broken:
            self._leave(rows[i], items[i])

    def answer_all(self, rows: list[int], items: list, batch: tuple[int, ...] = ()) -> None:
        """Answer rows together; where that fails, each alone, for only one of them may be the reason.

        Args:
            rows, items: their numbers, and their prepared questions.
            batch: the rows that failed together before, of which these are some.
        """
        start = time.perf_counter()
        replies = self._replies(items)
        if replies is None:
            for row, item in zip(rows, items, strict=True):
                self.answer_all([row], [item], tuple(rows))
        elif isinstance(replies, Exception):
            said = f" (alone, and before in a batch of rows {', '.join(map(str, batch))})" if batch else ""
            self._leave(rows[0], Broken(Broken.of(replies).error + said), replies)
        else:
            seconds = round((time.perf_counter() - start) / len(rows), 6)
            pairs = list(zip(rows, replies, strict=True))
            self.answers.append(
                [self.row(self.questions[row], reply.text, self.model_id) for row, reply in pairs],
                [{"row": row, **reply.stats, "seconds": seconds} for row, reply in pairs],
            )

    def _replies(self, items: list) -> list[Answer] | Exception | None:
        """What the model says; the error of a single question; None where several failed, without what they held."""
        try:
            return self.answer(items)
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            return error if len(items) == 1 else None

    def _leave(self, row: int, broken: Broken, error: Exception | None = None) -> None:
        """Note a question as skipped, or stop at it."""
        question_id = self.questions[row]["question_id"]
        if not self.skip:
            raise ValueError(f"row {row}, question {question_id}: {broken.error}") from error
        self.answers.skip(row, question_id, broken.error)


def _is_of_the_machine(error: Exception) -> bool:
    """Whether the next question will fail as well: a full or broken GPU, or a library that changed."""
    import torch

    from ..compat import LibraryChanged

    gpu = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    return isinstance(error, (LibraryChanged, *gpu))


def answer_row(question: dict, text: str, model_id: str) -> dict:
    """A row of an answers file: exactly the published keys, in their order."""
    import shortuuid  # help and refusals do without

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
        skip: questions that cannot be prepared or answered may be left.

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
