"""All benchmarks by name, and what a server or a judge needs of those that only it can score."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import (
    document,
    gqa,
    mm_vet,
    mmbench_scores,
    mme,
    pope,
    refcoco_scores,
    science,
    seed_bench,
    textvqa,
    video,
    vizwiz,
    vqav2,
)
from .benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        gqa.BENCHMARK,
        vqav2.BENCHMARK,
        science.BENCHMARK,
        vizwiz.BENCHMARK,
        textvqa.BENCHMARK,
        pope.BENCHMARK,
        mme.BENCHMARK,
        *mmbench_scores.BENCHMARKS,
        mm_vet.BENCHMARK,
        seed_bench.BENCHMARK,
        refcoco_scores.BENCHMARK,
        *video.BENCHMARKS,
        *document.BENCHMARKS,
    )
}


@dataclass(frozen=True)
class Submission:
    """What a server or a judge needs.

    Args:
        ending: of the file, behind the answers file's name without its own.
        write: from an answers file and the benchmark's folder to that file.
    """

    ending: str
    write: Callable[[Path, Path, Path], None]

    def file(self, answers: Path, folder: Path) -> Path:
        """Where it goes in a folder."""
        return folder / f"{answers.stem}{self.ending}"


def _mmbench(answers: Path, folder: Path, output: Path, name: str) -> None:
    mmbench_scores.write_submission(answers, mmbench_scores.TABLES[name].find(folder), output)


def _video(answers: Path, folder: Path, output: Path, name: str) -> None:
    video.write_for_judge(answers, folder, BENCHMARKS[name], output)


SUBMISSIONS: dict[str, tuple[Submission, ...]] = {
    "vqav2": (Submission(".upload.json", vqav2.write_submission),),
    "vizwiz": (Submission(".upload.json", vizwiz.write_submission),),
    **{name: (Submission(".upload.xlsx", partial(_mmbench, name=name)),) for name in mmbench_scores.TABLES},
    "mm_vet": (Submission(".json", mm_vet.write_submission), Submission(".judge.jsonl", mm_vet.write_for_judge)),
    **{
        benchmark.name: (Submission(".judge.jsonl", partial(_video, name=benchmark.name)),)
        for benchmark in video.BENCHMARKS
    },
}
