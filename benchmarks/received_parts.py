"""What `benchmarks.received` measures and prints: parts of Qwen2.5-VL's tower, and ways to the attention received."""

from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLConfig

from vscan.api import apply
from vscan.select.attention import rotate, split_heads
from vscan.select.received import CHUNK_ELSEWHERE, attention_received, received_in_chunks
from vscan.tools.bench import random_model
from vscan.tools.bench_qwen import VISION, QwenBench, grid_of
from vscan.tools.timing import clock_of, peak_bytes, spread, table

NUM_WINDOWED, NUM_FULL = 28, 4  # blocks of the published towers
STAGE = QwenBench.stage
WINDOWED, LOCAL, GLOBAL = range(3)  # those of ours: one with windows, and two with full attention, which VScan reads


def build(dtype: torch.dtype, device: torch.device):
    """A tower of three blocks of real size, in a shell with next to no decoder."""
    text = {"vocab_size": 200, "hidden_size": 3584, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = VISION | {"depth": 3, "out_hidden_size": 3584, "fullatt_block_indexes": [LOCAL, GLOBAL]}
    ids = {"image_token_id": 196, "video_token_id": 197, "vision_start_token_id": 198, "vision_end_token_id": 199}
    return random_model(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids), dtype, device, None)


def all_heads_at_once(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The same columns of one segment, with the heads in one batched product, in chunks of 128 MiB."""
    received = torch.zeros(query.shape[1], dtype=torch.float32, device=query.device)
    key = key.float().transpose(1, 2)
    for part in query.split(max(1, CHUNK_ELSEWHERE // (len(query) * query.shape[1])), dim=1):
        received += (part.float() @ key * scale).softmax(dim=-1).sum(dim=(0, 1)) / query.shape[1]
    return received


@contextmanager
def reduced(model):
    """The reduction whose cost is measured."""
    reduction = apply(model, visual_tokens=0.333)
    try:
        yield reduction
    finally:
        reduction.remove()


def blocks_of(bench: QwenBench) -> dict[str, Callable]:
    """What the tower is put together from, by name."""
    hidden = torch.randn(len(bench.pixels), VISION["hidden_size"], device=bench.device).to(bench.pixels.dtype)
    _, calls = bench.record((WINDOWED, LOCAL, GLOBAL))
    windowed, full = (partial(bench.visual_tower.blocks[i], hidden, **calls[i][0]) for i in (WINDOWED, LOCAL))
    return {"windowed block": windowed, "full block": full, "outside the blocks": bench.outside_blocks}


def calls_of(bench: QwenBench) -> dict[str, Callable]:
    """Ways to compute the attention received, and one call of SDPA on the same states, by name."""
    attention = bench.visual_tower.blocks[LOCAL].attn
    keywords, states = bench.record((WINDOWED, LOCAL, GLOBAL))[1][LOCAL]
    query, key, value = (split_heads(part, attention.head_dim) for part in states.unsqueeze(0).chunk(3, dim=-1))
    cos, sin = (part.float().unsqueeze(0) for part in keywords["position_embeddings"])
    query, key = (rotate(part.float(), cos, sin) for part in (query, key))
    own = [part.to(states.dtype) for part in (query, key, value)]  # as the tower's attention gets them
    rest = ([len(states)], attention.scaling)
    calls = {
        "attention received": partial(attention_received, query[0], key[0], *rest),
        "all heads at once": partial(all_heads_at_once, query[0], key[0], attention.scaling),
        "SDPA": partial(scaled_dot_product_attention, *own, scale=attention.scaling),
    }
    if bench.device.type == "cuda":
        calls["in chunks"] = partial(received_in_chunks, query[0], key[0], *rest)
        calls["attention received in the tower's dtype"] = partial(attention_received, own[0][0], own[1][0], *rest)
    return calls


@torch.inference_mode()
def measure(bench: QwenBench, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every part in each round, and peaks of memory in bytes. What is measured of memory is the warm-up."""
    with reduced(bench.model) as reduction:
        blocks, calls, selection = blocks_of(bench), calls_of(bench), bench.selection(reduction)
        peaks = {"reduced tower": peak_bytes(bench.tower, bench.device)}
    peaks["dense tower"] = peak_bytes(bench.tower, bench.device)
    peaks |= {name: peak_bytes(call, bench.device) for name, call in calls.items()}
    parts, seconds, (_, clock) = {**blocks, STAGE: selection, **calls}, {}, clock_of(bench.device)
    for number in range(rounds):
        for name in list(parts)[:: -1 if number % 2 else 1]:
            with reduced(bench.model) if name == STAGE else nullcontext():
                start = clock()
                parts[name]()
                seconds.setdefault(name, []).append(clock() - start)
    pieces = zip(*(seconds[name] for name in blocks), strict=True)
    seconds["tower"] = [NUM_WINDOWED * windowed + NUM_FULL * full + outside for windowed, full, outside in pieces]
    return seconds, peaks


def ratio(seconds: dict[str, list[float]], above: str, below: str, times: int = 1, unit: str = "") -> str:
    """One time by another, round by round."""
    return spread([times * a / b for a, b in zip(seconds[above], seconds[below], strict=True)], unit)


def report(measured: dict[int, tuple[dict[str, list[float]], dict[str, int]]]) -> str:
    """Three tables: times, ratios, memory.

    Args:
        measured: {patches: what `measure` gave}.
    """
    seconds, peaks = ({size: pair[index] for size, pair in measured.items()} for index in (0, 1))
    names, calls = list(next(iter(seconds.values()))), list(next(iter(peaks.values())))[2:]
    text = table(
        ["patches", *names], [[str(n), *(spread(row[name], "s") for name in names)] for n, row in seconds.items()]
    )
    lines = []
    for size, row in seconds.items():
        line = [str(size), ratio(row, STAGE, "tower", unit="%")]
        line += [ratio(row, name, "tower", 2, "%") for name in calls]
        lines.append([*line, *(ratio(row, name, "SDPA") for name in calls if name != "SDPA")])
    head = ["patches", f"{STAGE}/tower", *(f"2 x {name}/tower" for name in calls)]
    text += "\n\n" + table([*head, *(f"{name}/SDPA" for name in calls if name != "SDPA")], lines)
    lines = []
    for size, row in peaks.items():
        line = [str(size), *(f"{row[name] / 2**20:.1f} MiB" for name in ("dense tower", "reduced tower", *calls))]
        lines.append(
            [*line, f"{row['reduced tower'] / row['dense tower']:.3f}", f"{row['reduced tower'] / size:.0f} B"]
        )
    head = ["patches", "dense tower", "reduced tower", *calls, "reduced/dense", "reduced tower, a patch"]
    return f"{text}\n\npeak memory\n\n{table(head, lines)}"


def run(args: Namespace) -> None:
    """Measure what the flags ask for, and print it."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = build(getattr(torch, args.dtype), device)
    print(
        f"{clock_of(device)[0]} on {device}, {torch.get_num_threads()} CPU threads, {args.dtype}, "
        f"{args.rounds} rounds, torch {torch.__version__}",
        f"tower = {NUM_WINDOWED} x windowed block + {NUM_FULL} x full block + outside the blocks, worked out",
        sep="\n",
        end="\n\n",
        flush=True,
    )
    measured = {}
    for size in args.image_size:
        bench = QwenBench(model, [grid_of(*size)], 1)
        measured[len(bench.pixels)] = measure(bench, args.rounds)
    print(report(measured))
