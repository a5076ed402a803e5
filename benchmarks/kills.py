"""Kill a run at random moments, start it again with the same command, and compare with a run that was left alone.

    python -m benchmarks.kills --kills 50
    python -m benchmarks.kills --while-starting 20

The model is tiny. Every start is a process of its own that runs the whole command; only its imports are shared. The
second command kills while worker processes start, and counts those that are left after five seconds.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vscan.eval.guard import Parser, run_command

TOKENS = 24
NUM_WORKERS = 4  # of a command that is killed while they start
SECONDS_LEFT = 5  # after which a worker must be gone


def _build(folder: Path, num_rows: int) -> None:
    from playground.tiny import build_checkpoint, draw

    build_checkpoint(folder / "tiny-llava")
    questions = []
    for row in range(num_rows):
        draw(folder / f"{row % 4}.png", seed=row % 4)
        # Ids come twice and texts again and again, so only the place in the file tells rows apart.
        questions.append({"question_id": row // 2, "text": f"How many? {row % 5}", "image": f"{row % 4}.png"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))


def _answer(folder: Path, file: Path, num_workers: int = 1) -> None:
    import torch

    from llava.eval.model_vqa_loader import main as answer

    torch.set_num_threads(1)
    flags = {"--model-path": folder / "tiny-llava", "--question-file": folder / "questions.jsonl"}
    flags |= {"--image-folder": folder, "--answers-file": file, "--temperature": 0, "--max_new_tokens": TOKENS}
    flags |= {"--batch-size": 2, "--num-workers": num_workers, "--device": "cpu"}
    flags |= {"--layer_list": "[4]", "--image_token_list": "[32]", "--visual_token_num": 96}
    answer([str(part) for pair in flags.items() for part in pair])


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1] if file.exists() else []


def _starter(folder: Path) -> Callable[..., multiprocessing.Process]:
    """A function that starts others, on `folder`, in processes whose imports are done."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llava.eval.model_vqa_loader", "llava.eval.answering", "playground.tiny"])

    def start(function, *args):
        process = processes.Process(target=function, args=(folder, *args))
        process.start()
        return process

    return start


def _answer_apart(*args) -> None:
    os.setsid()  # its process id is then the name of all that it starts, for ever
    _answer(*args)


def _processes_of(sessions: set[int]) -> list[int]:
    """The processes of some sessions that have not ended; Linux only."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if int(session) in sessions and state != "Z":
            found.append(int(file.parent.name))
    return found


def _num_children(parent: int) -> int:
    file = Path(f"/proc/{parent}/task/{parent}/children")
    return len(file.read_text().split()) if file.exists() else 0


def kill_while_starting(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a command `kills` times while its worker processes start.

    Args:
        folder: an empty one, for everything that is made.
        kills: how often to kill.
        seed: of the moments.

    Returns:
        How many workers there were right after their command was killed, and how many were left after SECONDS_LEFT.
    """
    start, chance = _starter(folder), random.Random(seed)
    start(_build, 64).join()
    sessions, num_workers = set(), 0
    for number in range(kills):
        process = start(_answer_apart, folder / f"{number}.jsonl", NUM_WORKERS)
        wanted = chance.randint(1, NUM_WORKERS)
        while _num_children(process.pid) < wanted:
            assert process.is_alive(), "the run ended before its workers started"
        time.sleep(chance.choice([0, 0.001, 0.01]))  # a worker takes some milliseconds to know its parent
        process.kill()
        process.join()
        sessions.add(process.pid)
        num_workers += len(_processes_of({process.pid}))
    time.sleep(SECONDS_LEFT)
    left = _processes_of(sessions)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    return {"workers": num_workers, "left": len(left)}


def kill_again_and_again(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a run `kills` times and finish it.

    Args:
        folder: an empty one, for everything that is made.
        kills: how often to kill.
        seed: of the moments.

    Returns:
        How many rows there are, how many kills came, and how many of these between the first row of their start and
        the last.

    Raises:
        AssertionError: if a row was lost, doubled, moved or computed again.
    """
    start, chance = _starter(folder), random.Random(seed)
    num_rows = 6 * kills + 10
    start(_build, num_rows).join()
    whole, killed = folder / "whole.jsonl", folder / "killed.jsonl"
    begun = time.perf_counter()
    start(_answer, whole).join()
    seconds = time.perf_counter() - begun
    answering = sum(json.loads(line)["seconds"] for line in _whole_lines(Path(f"{whole}.stats.jsonl")))

    kept, num_kills, num_amid = [], 0, 0
    while num_kills < kills:
        process = start(_answer, killed)
        num_new = chance.randrange(4)
        while num_new and process.is_alive() and len(_whole_lines(killed)) < len(kept) + num_new:
            time.sleep(0.001)
        # While it starts, or, after some rows, within a batch.
        process.join(chance.uniform(0, 2 * answering / num_rows if num_new else seconds - answering))
        num_kills += process.is_alive()
        process.kill()
        process.join()
        lines = _whole_lines(killed)
        assert lines[: len(kept)] == kept, "an answer was lost, moved or computed again"
        num_amid += len(kept) < len(lines) < num_rows
        kept = lines
        print(f"kill {num_kills}: {len(lines)} of {num_rows} rows", flush=True)
        assert len(lines) < num_rows or num_kills == kills, "the run ended before it was killed often enough"
    start(_answer, killed).join()

    lines = _whole_lines(killed)
    assert lines[: len(kept)] == kept, "an answer was lost, moved or computed again"
    rows, expected = ([json.loads(line) for line in _whole_lines(file)] for file in (killed, whole))
    assert len({row["answer_id"] for row in rows}) == num_rows, "a row is missing or came twice"
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "answer_id": None} == {**other, "answer_id": None}, f"{row} instead of {other}"
    stats = [json.loads(line)["row"] for line in _whole_lines(Path(f"{killed}.stats.jsonl"))]
    assert stats == list(range(num_rows)), "the stats are not those of the rows"
    return {"rows": num_rows, "kills": num_kills, "amid rows": num_amid}


def main(argv: list[str]) -> None:
    """Kill as often as the command line says, and print what came of it."""
    parser = Parser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="while rows are answered")
    parser.add_argument(
        "--while-starting", type=int, default=0, help="kills while worker processes start, in its place"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.while_starting:
            counts = kill_while_starting(Path(folder), args.while_starting, args.seed)
            print(
                f"{args.while_starting} kills, {counts['workers']} worker processes right after them, {counts['left']} "
                f"after {SECONDS_LEFT} seconds"
            )
            sys.exit(counts["left"] > 0)
        counts = kill_again_and_again(Path(folder), args.kills, args.seed)
    print(
        f"{counts['kills']} kills, {counts['amid rows']} of them amid rows: all {counts['rows']} rows are there once, "
        f"in order and as in the run that was left alone; none was computed again"
    )


if __name__ == "__main__":
    run_command(main)
