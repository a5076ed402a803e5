"""Is the data in place and right? Rows are counted, questions joined with their answers, pictures looked for."""

from dataclasses import dataclass
from pathlib import Path

from .benchmark import Benchmark, DataFile, read_rows
from .benchmarks import BENCHMARKS
from .gold import read_json
from .mmbench import read_table
from .sheet import read_sheet

LISTS = ("data", "questions", "annotations")  # keys under which published files have their rows
MOST_NAMES = 3  # that are shown of what is missing


@dataclass(frozen=True)
class Finding:
    """What is there of a benchmark.

    Args:
        benchmark: which.
        there: what is in place, a few words each.
        absent: what may be missing, and is.
        missing: what nothing can be asked or scored without.
        problems: what is wrong, a sentence each.
    """

    benchmark: Benchmark
    there: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """wrong, half (there), right or absent."""
        if self.problems or self.missing:
            return "wrong" if self.problems else "half"
        return "right" if self.there else "absent"


def read_entries(file: Path) -> list | None:
    """The rows of a data file in any of the published formats; None for one that is not of rows, such as a folder.

    Raises:
        ValueError: for a file that is none.
    """
    if not file.is_file():
        return None
    if file.suffix == ".tsv":
        return read_table(file, {"index"})
    if file.suffix == ".xlsx":
        return read_sheet(file)
    if file.suffix not in (".json", ".jsonl"):
        return None
    if file.suffix == ".jsonl":
        return read_rows(file)
    try:
        content = read_json(file)
    except ValueError:
        return read_rows(file)  # POPE's labels: an object a line, whatever their names say
    if isinstance(content, dict):
        lists = [content[key] for key in LISTS if isinstance(content.get(key), list)]
        content = lists[0] if lists else list(content.values())
    return content


def _find(file: DataFile, folder: Path) -> Path | None:
    try:
        return file.find(folder)
    except FileNotFoundError:
        return None


def _check_images(rows: list, folder: Path, places: list[Path]) -> tuple[list[str], list[str]]:
    """Whether the pictures that questions name are in one of the places; returns what is there, and what is missing.

    Raises:
        ValueError: for an image that is no name, naming its row.
    """
    named = [(row, entry["image"]) for row, entry in enumerate(rows) if isinstance(entry, dict) and entry.get("image")]
    for row, name in named:
        if not isinstance(name, str):
            raise ValueError(f"questions, row {row}: expected image to be a string, got {name!r}")
    names = list(dict.fromkeys(name for _, name in named))
    missing = [name for name in names if not any((place / name).is_file() for place in (*places, folder))]
    if not missing:
        return [f"{len(names)} images"], []
    some = ", ".join(missing[:MOST_NAMES]) + ", ..." * (len(missing) > MOST_NAMES)
    return [], [f"{len(missing)} of {len(names)} images: {some}"]


def _check_rows(file: DataFile, place: Path) -> tuple[list[str], list[str], list]:
    """Count the rows of a data file; returns what is there, problems, and the rows (none of a folder)."""
    try:
        entries = read_entries(place)
    except (OSError, ValueError) as error:
        return [], [str(error)], []
    if entries is None:
        return [], [], []
    there = f"{place.name} {len(entries)}"
    if file.num_rows is None:
        return [f"{there} (count not known)"], [], entries
    if file.num_rows == len(entries):
        return [there], [], entries
    return [there], [f"{place.name}: expected {file.num_rows} rows as published, got {len(entries)}"], entries


def check_benchmark(benchmark: Benchmark, folder: Path) -> Finding:
    """Look at one benchmark's folder; nothing of it there is no problem, half of it is."""
    places = {file: _find(file, folder) for file in benchmark.files}
    if not any(place for file, place in places.items() if file.purpose != "images"):
        return Finding(benchmark)
    there, absent, missing, problems, asked = [], [], [], [], []
    for file, place in places.items():
        if place is None:
            (missing if file.required else absent).append(f"{' or '.join(file.paths)} ({file.purpose})")
            continue
        counted, wrong, entries = _check_rows(file, place)
        there += counted
        problems += wrong
        if file.purpose == "questions" and not asked and place.suffix != ".tsv":
            asked = entries
    folders = [place for file, place in places.items() if file.purpose == "images" and place is not None]
    try:
        if asked and folders:
            found, lost = _check_images(asked, folder, folders)
            there += found
            missing += lost
        if not any(place is None for file, place in places.items() if file.required and file.purpose != "images"):
            problems += benchmark.check(folder)
    except (OSError, ValueError) as error:
        problems.append(str(error))
    return Finding(benchmark, tuple(there), tuple(absent), tuple(missing), tuple(dict.fromkeys(problems)))


def check_all(folder: str | Path) -> list[Finding]:
    """Look at LLaVA's eval folder, with a folder a benchmark.

    Raises:
        FileNotFoundError: if there is no such folder, or no benchmark in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"expected a folder at {str(folder)!r}, found none")
    findings = [check_benchmark(benchmark, Path(folder) / benchmark.folder) for benchmark in BENCHMARKS.values()]
    if all(finding.state == "absent" for finding in findings):
        folders = ", ".join(dict.fromkeys(benchmark.folder for benchmark in BENCHMARKS.values()))
        raise FileNotFoundError(f"expected benchmarks in {str(folder)!r}, as {folders}, found none")
    return findings


def lines(finding: Finding) -> list[str]:
    """What is printed of one."""
    words = "; ".join(finding.there) if finding.there else f"nothing in {finding.benchmark.folder}/"
    if finding.absent:
        words += f"; without {', '.join(finding.absent)}"
    shown = [f"{finding.benchmark.name:<12} {finding.state:<7} {words}"]
    shown += [f"{'':<12} - missing: {sentence}" for sentence in finding.missing]
    return shown + [f"{'':<12} - {' '.join(problem.split())}" for problem in finding.problems]
