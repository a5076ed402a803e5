"""Answers files that lose nothing: rows are appended as they come, and the same command goes on where it stopped.

Beside `answers.jsonl` lie `answers.jsonl.run.json`, the configuration that a resumed run must share, and
`answers.jsonl.stats.jsonl`, one row an answer: the question's row number, tokens per stage and seconds. Two more come
and go: `answers.jsonl.rank0of2` (with stats of its own) holds what one process of two has answered, until everything is
merged; `answers.jsonl.skipped.jsonl` names the rows that the last run had to skip.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .lines import as_lines, beside, check_stats, parse_answer, parse_object, read_record, whole_lines, write_whole
from .run_record import difference

PATIENCE = 10  # seconds that a killed process may take to be gone


class Part:
    """Answers in the order in which they came, with their stats beside, both cut to whole rows.

    Args:
        file: where answers go.

    Raises:
        ValueError: if another process writes to the file.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self.stats_file = beside(self.file, "stats.jsonl")
        self.skipped_file = beside(self.file, "skipped.jsonl")
        self._lock()
        self._take()
        self._cut()

    @classmethod
    def of_rank(cls, file: str | Path, rank: int, num_ranks: int) -> "Part":
        """Where one process of several writes, until `AnswersFile.merge` of `file`."""
        return cls(beside(Path(file), f"rank{rank}of{num_ranks}"))

    def _lock(self) -> None:
        patience = time.monotonic() + PATIENCE
        while True:
            self._stream = open(self.file, "a+b", buffering=0)  # noqa: SIM115 - it stays open, and locked with it
            try:
                # Unlike flock's, this lock is not inherited by worker processes, which may outlive a killed run. It is
                # gone when any handle of the file is closed in this process: all reading goes through this one.
                fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                self._stream.close()
                if time.monotonic() > patience:
                    raise ValueError(
                        f"answers file {str(self.file)!r}: expected one that no other process writes to; is the same "
                        f"command still running?"
                    ) from error
                time.sleep(0.1)
                continue
            except OSError:
                return  # a file system without locks
            # Who had the lock may have put merged rows in the place of the file that was opened here.
            if self.file.exists() and os.path.samestat(os.fstat(self._stream.fileno()), self.file.stat()):
                return
            self._stream.close()

    def _take(self) -> None:
        """Look at what is there before it is changed; it is locked."""

    def _cut(self) -> None:
        answers = whole_lines(self._read())
        self._stream.truncate(sum(map(len, answers)))
        # Stats are written before their answer, so those of a row that was cut come again. Fewer of them than answers
        # are left only where a disk lost them: such rows say that nothing is known.
        self.stats_file.touch()
        stats = whole_lines(self.stats_file.read_bytes())[: len(answers)]
        os.truncate(self.stats_file, sum(map(len, stats)))
        with open(self.stats_file, "ab") as stream:
            stream.write(b"{}\n" * (len(answers) - len(stats)))
        self.num_done = len(answers)

    def _read(self) -> bytes:
        self._stream.seek(0)
        return self._stream.read()

    def rows(self) -> Iterator[tuple[int | None, bytes, bytes]]:
        """Every answer: its row number, where it is known, its line and that of its stats.

        Raises:
            ValueError: for a line that is not as it was written, naming it.
        """
        stats = whole_lines(self.stats_file.read_bytes())
        for number, (answer, line) in enumerate(zip(whole_lines(self._read()), stats, strict=True), start=1):
            parse_answer(answer, f"{self.file}, line {number}")
            where = f"{self.stats_file}, line {number}"
            costs = parse_object(line, where, "an answer's stats, a JSON object")
            check_stats(costs, where)
            yield costs.get("row"), answer, line

    def append(self, answers: list[dict], stats: list[dict]) -> None:
        """Write rows to disk, all or none of them.

        Raises:
            OSError: if they cannot be written, such as on a full disk.
        """
        with open(self.stats_file, "ab", buffering=0) as stream:
            self._write(stream, as_lines(stats))
        self._write(self._stream, as_lines(answers))
        self.num_done += len(answers)

    def _write(self, stream, content: bytes) -> None:
        size = os.fstat(stream.fileno()).st_size
        try:
            while content:
                content = content[os.write(stream.fileno(), content) :]
        except OSError as error:
            os.ftruncate(stream.fileno(), size)
            raise OSError(
                f"answers file {str(self.file)!r}: expected to write another row, got {error.strerror!r}; the "
                f"{self.num_done} rows before it are whole, the same command goes on after them"
            ) from error

    def skip(self, row: int, question_id, error: str) -> None:
        """Note that a row cannot be answered now; the next run tries again."""
        with open(self.skipped_file, "ab") as stream:
            stream.write(as_lines([{"row": row, "question_id": question_id, "error": error}]))

    def close(self) -> None:
        """Let another process write."""
        self._stream.close()


class AnswersFile(Part):
    """The answers file of a command, under way: begun or continued.

    Args:
        file: where answers go; its folder is made.
        config: plain values; a file that was begun with others is not continued (`run_record.difference`).

    Raises:
        ValueError: if the file was begun with another configuration, naming what differs; if another process writes
            to it, or nothing can be written there; or if a line is not as it was written.
    """

    def __init__(self, file: str | Path, config: dict):
        file = Path(file)
        self.config = config
        self.check(file, config)
        with _named(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(file)
            write_whole(beside(file, "run.json"), json.dumps(config, indent=2).encode() + b"\n")
            self.merge()
            self.skipped_file.unlink(missing_ok=True)

    def _take(self) -> None:
        # Another command may have begun the file since it was looked at.
        self._check(self.file, self._read(), self.config)
        # A merge puts new answers and stats in place of the old. The answers are written last, so they say that both
        # are complete; where they lie, the rest of the merge is due, also after a kill.
        answers, stats = beside(self.file, "new"), beside(self.stats_file, "new")
        if answers.exists():
            self._check_merged(answers, stats if stats.exists() else self.stats_file)
            self._swap()

    def _swap(self) -> None:
        """Put merged answers and stats, as far as this is not done yet, in place of the old ones."""
        answers, stats = beside(self.file, "new"), beside(self.stats_file, "new")
        if stats.exists():
            os.replace(stats, self.stats_file)
        os.replace(answers, self.file)
        self._stream.close()
        self._lock()

    def _check_merged(self, answers: Path, stats: Path) -> None:
        """Raise ValueError unless a merge of this file wrote these: nothing else may take the place of answers."""
        lines, others = answers.read_bytes(), stats.read_bytes() if stats.exists() else b""
        for number, line in enumerate(whole_lines(lines), start=1):
            parse_answer(line, f"{answers}, line {number}")
        lost = set(whole_lines(self._read())) - set(whole_lines(lines))
        if lost or lines[-1:] not in (b"", b"\n") or lines.count(b"\n") != others.count(b"\n"):
            raise ValueError(
                f"{answers}: expected the rows of {self.file.name}, merged by a run that was stopped, got {len(lines)} "
                f"bytes of something else ({len(lost)} rows are not in it); remove it"
            )

    @classmethod
    def check(cls, file: Path, config: dict) -> None:
        """Raise ValueError if nothing can be written to the file, or it was begun with another configuration, naming
        what differs. Writes nothing."""
        with _named(file):
            if file.exists() and not file.is_file():
                raise ValueError(f"answers file: expected a file, got a folder or a device at {str(file)!r}")
            for folder in file.parents:
                if folder.exists() and not folder.is_dir():
                    raise ValueError(f"answers file {str(file)!r}: expected a folder at {str(folder)!r}, got a file")
            cls._check(file, file.read_bytes() if file.exists() else b"", config)

    @staticmethod
    def _check(file: Path, content: bytes, config: dict) -> None:
        # What is locked must not be opened once more: the content comes from who has it.
        begun = [part for part in (content, *(part.read_bytes() for part in _parts(file))) if part]
        if not begun:
            return
        run_file, differs = beside(file, "run.json"), "no run.json"
        if run_file.exists():
            differs = difference(read_record(run_file), json.loads(json.dumps(config)))
        if differs:
            num_rows = sum(len(whole_lines(part)) for part in begun)
            raise ValueError(
                f"answers file {str(file)!r}: expected one that this command began, got {num_rows} rows of another run "
                f"({differs}); give another file or remove this one"
            )

    def rows(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Every answer: its row number, its line and that of its stats."""
        last = -1
        for row, answer, stats in super().rows():
            last = last + 1 if row is None else row
            yield last, answer, stats

    def todo(self, questions: list[dict]) -> list[int]:
        """The row numbers of the questions that have no answer yet.

        Raises:
            ValueError: for an answer to another question: the question file is not the one that the run began with.
        """
        left = dict.fromkeys(range(len(questions)))
        for number, (row, line, _) in enumerate(self.rows(), start=1):
            got = parse_answer(line, f"{self.file}, line {number}")["question_id"]
            if row not in left or questions[row]["question_id"] != got:
                expected = f"question {questions[row]['question_id']!r}" if row < len(questions) else "no question"
                raise ValueError(
                    f"{self.file}, line {number}: expected the answer to row {row} of the question file ({expected}), "
                    f"got one to question {got!r}; was the question file changed?"
                )
            del left[row]
        return list(left)

    def merge(self) -> None:
        """Put the rows of all parts, and those that were skipped at first, where they belong."""
        parts = [Part(file) for file in _parts(self.file)]
        numbers = [row for row, *_ in self.rows()]
        if parts or numbers != sorted(set(numbers)):
            # A run that was killed before it removed the parts finds their rows twice.
            rows = {row: lines for row, *lines in self.rows()}
            rows |= {row: lines for part in parts for row, *lines in part.rows() if row not in {None, *rows}}
            answers, stats = (b"".join(rows[row][i] for row in sorted(rows)) for i in (0, 1))
            write_whole(beside(self.stats_file, "new"), stats)
            write_whole(beside(self.file, "new"), answers)
            self._swap()
            self._cut()
        for part in parts:
            if part.skipped_file.exists():
                with open(self.skipped_file, "ab") as stream:
                    stream.write(part.skipped_file.read_bytes())
            part.skipped_file.unlink(missing_ok=True)
            part.stats_file.unlink()
            part.file.unlink()  # last: it is what a next run looks for
            part.close()


def _parts(file: Path) -> list[Path]:
    """What the processes of a run have written that is not merged yet."""
    if not file.parent.is_dir():
        return []
    found = [other for other in file.parent.iterdir() if re.fullmatch(r"\.rank\d+of\d+", other.name[len(file.name) :])]
    return sorted(other for other in found if other.name.startswith(file.name))


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Make a ValueError that names the answers file of what the disk refuses."""
    try:
        yield
    except OSError as error:
        # A name that is too long for the disk is too long for a reader as well.
        name, place = (str(path)[:80] + "..." if len(str(path)) > 300 else str(path) for path in (file, error.filename))
        raise ValueError(
            f"answers file {name!r}: expected one that can be written, got {error.strerror!r} at {place!r}"
        ) from error
