"""Answers files that lose nothing: rows are appended as they come, and the same command goes on where it stopped.

Beside `answers.jsonl` lie `answers.jsonl.run.json`, the configuration that a resumed run must share, and
`answers.jsonl.stats.jsonl`, one row an answer: tokens per stage and seconds.
"""

import json
import os
from pathlib import Path


def _whole_lines(file: Path, most: int | None = None) -> tuple[int, int]:
    """How many lines of a file are whole, `most` of them at the most, and how many bytes these are."""
    lines = size = 0
    if file.exists():
        with open(file, "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n") or lines == most:
                    break
                lines, size = lines + 1, size + len(line)
    return lines, size


class AnswersFile:
    """An answers file under way.

    Args:
        file: where answers go; its folder is made.
        config: plain values; a file that was begun with others is not continued.

    Raises:
        ValueError: if the file was begun with another configuration, naming what differs.
    """

    def __init__(self, file: str | Path, config: dict):
        self.file = Path(file)
        self.stats_file = self.file.with_name(self.file.name + ".stats.jsonl")
        run_file = self.file.with_name(self.file.name + ".run.json")
        config = json.loads(json.dumps(config))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.num_done, size = _whole_lines(self.file)
        if self.file.exists() and self.file.stat().st_size:
            begun = json.loads(run_file.read_text()) if run_file.exists() else None
            if begun != config:
                differs = "no run.json" if begun is None else _difference(begun, config)
                raise ValueError(
                    f"answers file {str(self.file)!r}: expected one that this command began, got {self.num_done} rows "
                    f"of another run ({differs}); give another file or remove this one"
                )
        for file in (self.file, self.stats_file):
            file.touch()
        os.truncate(self.file, size)
        # Stats are written before their answer, so those of a row that was cut come again. Fewer of them than answers
        # are left only where a disk lost them: such rows say that nothing is known.
        num_stats, size = _whole_lines(self.stats_file, self.num_done)
        os.truncate(self.stats_file, size)
        with open(self.stats_file, "a") as stream:
            stream.write("{}\n" * (self.num_done - num_stats))
        temporary = run_file.with_name(run_file.name + ".tmp")
        temporary.write_text(json.dumps(config, indent=2) + "\n")
        os.replace(temporary, run_file)

    def append(self, answers: list[dict], stats: list[dict]) -> None:
        """Write rows to disk, in order."""
        for file, rows in ((self.stats_file, stats), (self.file, answers)):
            with open(file, "a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self.num_done += len(answers)


def _difference(begun: dict, config: dict) -> str:
    both = {**begun, **config}
    keys = [key for key in both if key not in begun or key not in config or begun[key] != config[key]]
    return "; ".join(f"{key}: {begun.get(key)!r}, now {config.get(key)!r}" for key in keys)
