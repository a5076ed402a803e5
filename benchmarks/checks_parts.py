"""What `benchmarks.checks` times: steps of two models, with the checks, without, and the checks alone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path

import torch
import transformers
from torch import nn

import vscan
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import llava_arch, video_llava_arch
from llava.model.builder import load_model
from llava.model.language_model import llava_llama
from vscan import decoder
from vscan.cache import Cached
from vscan.checks import guards
from vscan.checks.selftest_tower import clip_towers_of
from vscan.compat import CACHE, cache_of, check, text_model_of
from vscan.models import install
from vscan.models.towers import TowerMemory, grid_of
from vscan.tools import bench
from vscan.tools.timing import clock_of, spread, table

TINY = Path(__file__).resolve().parents[1] / "playground" / "models" / "tiny-llava"
WIDE, NUM_LAYERS = "llava-1.5-7b", 2
STEPS = ("prefill", "decode per token")
# Where checks are called by the names under which they came.
PLACES = (decoder, install, llava_arch, video_llava_arch, llava_llama)
CHECKS = [name for name in vars(guards) if name.startswith("check_")]
# What takes the place of a check and gives something that can be gone on with; others give nothing.
REPEATS = 100  # a check takes some microseconds
IDLE = {"check_prefill": lambda *given: Cached([], 0, None), "check_dense": lambda *given: False}


def as_it_is(name: str, check: Callable) -> Callable:
    return check


def idle(name: str, check: Callable) -> Callable:
    return IDLE.get(name, lambda *given: None)


@contextmanager
def replaced(replacement: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Every check replaced by what a function makes of its name and of itself."""
    with ExitStack() as undo:
        for place in PLACES:
            for name in CHECKS:
                if name in vars(place):
                    undo.callback(setattr, place, name, vars(place)[name])
                    setattr(place, name, replacement(name, vars(place)[name]))
        yield


class Case:
    """One model with its prompt: a picture between two runs of text."""

    def __init__(self, name: str, model: nn.Module):
        self.name, self.model = name, model
        tower = clip_towers_of(model)[0]
        side = tower.config.image_size
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        is_original = hasattr(model, "encode_images")
        image = [IMAGE_TOKEN_INDEX] if is_original else [model.config.image_token_id] * prod(grid_of(tower))
        ids = torch.tensor([[1] * bench.BEFORE + image + [1] * bench.AFTER])
        self.inputs = {"input_ids": ids, "images" if is_original else "pixel_values": pixels}
        self.middle = text_model_of(model).config.num_hidden_layers // 2

    def step(self, cache=None):
        """The prompt, or one token after it; returns the cache."""
        given = self.inputs if cache is None else {"input_ids": torch.ones(1, 1, dtype=torch.long), CACHE: cache}
        return cache_of(self.model(**given, use_cache=True, logits_to_keep=1))


def cases(dtype: torch.dtype) -> list[Case]:
    """The models, built one after the other."""
    cpu = torch.device("cpu")
    tiny, wide = load_model(TINY, device="cpu", dtype="float32"), bench.build(WIDE, NUM_LAYERS, dtype, cpu, None)
    return [Case("tiny LLaVA", tiny), Case(f"{WIDE}, {NUM_LAYERS} layers", wide)]


def time_steps(case: Case, num_new: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of a prompt, and of a token after it."""
    start = clock()
    cache = case.step()
    filled = clock()
    for _ in range(num_new):
        case.step(cache)
    return [filled - start, (clock() - filled) / num_new]


def time_checks(case: Case, clock: Callable[[], float]) -> list[float]:
    """Seconds that the checks of a prompt take alone, and those of a token after it; each is called many times where
    it is called once."""
    spent = []

    def timed(name: str, original: Callable) -> Callable:
        def check(*given):
            start = clock()
            for _ in range(REPEATS):
                result = original(*given)
            spent.append((clock() - start) / REPEATS)
            return result

        return check

    with replaced(timed):
        cache = case.step()
        of_prompt = sum(spent)
        case.step(cache)
    return [of_prompt, sum(spent) - of_prompt]


@torch.inference_mode()
def measure(case: Case, rounds: int, num_new: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a prompt and of a token, a pair a round: "with" the checks, "without", and of the "checks" alone."""
    _, clock = clock_of(torch.device("cpu"))
    ways, seconds = {"with": as_it_is, "without": idle}, {"with": [], "without": [], "checks": []}
    with vscan.reduce(case.model, visual_tokens=96, layers={case.middle: 32}) as reduction:
        reduction.tower_memory = TowerMemory()
        for number in range(-1, rounds):  # one before the first, for what is set up
            for which in list(ways)[:: -1 if number % 2 else 1]:
                with replaced(ways[which]):
                    seconds[which].append(time_steps(case, num_new, clock))
            seconds["checks"].append(time_checks(case, clock))
    return {which: pairs[1:] for which, pairs in seconds.items()}


def report(measured: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """A table, a line for a prompt and one for a token of every model.

    Args:
        measured: {model: what `measure` gave}.
    """
    lines = []
    for name, seconds in measured.items():
        for number, step in enumerate(STEPS):
            ours, idle_ones, alone = ([pair[number] for pair in pairs] for pairs in seconds.values())
            ratios = [a / b for a, b in zip(ours, idle_ones, strict=True)]
            shares = [a / b for a, b in zip(alone, idle_ones, strict=True)]
            lines.append([name, step, spread(ours, "s"), spread(ratios), spread(alone, "s"), spread(shares, "%")])
    return table(["model", "step", "with checks", "with / without", "checks alone", "alone / without"], lines)


def run(args) -> None:
    """Measure and print what the command was asked for."""
    torch.set_num_threads(1)
    name, clock = clock_of(torch.device("cpu"))
    print(
        f"{name} of one thread, {args.rounds} rounds, {args.new_tokens} tokens a round, wide model in {args.dtype}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    measured, lines = {}, []
    for case in cases(getattr(torch, args.dtype)):
        taken = []
        for _ in range(2):
            start = clock()
            check(case.model)
            taken.append(f"{1000 * (clock() - start):.3g} ms")
        lines.append(f"self-test of the {case.name}: {taken[0]} the first time, {taken[1]} again")
        measured[case.name] = measure(case, args.rounds, args.new_tokens)
    print(report(measured), "", *lines, sep="\n")
