"""Questions become what a model takes, in worker processes, and no question stops another one."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..io.ranks import die_with_parent


@dataclass(frozen=True)
class Broken:
    """A question that cannot be prepared or answered: what is wrong with it, in words.

    The error itself stays in the worker: not every one can be sent to another process.
    """

    error: str

    @classmethod
    def of(cls, error: Exception) -> "Broken":
        """From an error; one that is not ours says of what kind it is, for its words alone may say nothing."""
        if isinstance(error, UnicodeEncodeError):
            got = f"{error.object[error.start]!r} at character {error.start}"
            return cls(f"expected a text that UTF-8 can hold, got {got}: half of a surrogate pair")
        is_ours = isinstance(error, ValueError | FileNotFoundError) and not isinstance(error, UnicodeError)
        said = str(error) if is_ours else f"{type(error).__name__}: {error}".removesuffix(": ")
        return cls(" ".join(said.split())[:500])


class Prepared:
    """The questions as a dataset: `prepare` runs in a worker process.

    A question that cannot be prepared becomes `Broken`, so that the rows before it are written first.
    """

    def __init__(self, questions: list[dict], prepare: Callable[[dict], Any]):
        self.questions, self.prepare = questions, prepare

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int):
        question = self.questions[index]
        try:
            question["text"].encode()  # some tokenizers fail on half of a surrogate pair without a word
            return self.prepare(question)
        except Exception as error:  # whatever it is, this question has it
            return Broken.of(error)


def prepared(questions: Prepared, batches: list[list[int]], num_workers: int) -> Iterator[tuple[list[int], list]]:
    """Every batch of row numbers with its prepared questions, from worker processes."""
    from torch.utils.data import DataLoader  # questions and flags are checked before torch is imported

    loader = DataLoader(
        questions,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        # Those of a fork server would not be this process's children, and outlive it.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=partial(_start_worker, os.getpid()),
    )
    items = iter(loader)
    for rows in batches:
        try:
            batch = next(items)
        except RuntimeError as error:
            raise ChildProcessError(
                f"row {rows[0]} or one after it: expected {num_workers} processes that prepare questions, got one that "
                f"ended ({str(error).splitlines()[0]}); is there memory for so many?"
            ) from error
        yield rows, batch


def _start_worker(parent: int, number: int) -> None:
    """In a worker process: it goes when the command is killed, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
