"""How fast a reduced model is and how far from its best: dense, reduced and floor take turns in one run, in one table.

    python -m vscan.profile --model llava-1.5-7b --random-weights --layers 8 --dtype bfloat16 --average 192 128 64

The *floor* is the same decoder given the shortened prompt from the start, run of layers by run of layers, so that
selecting, dropping and book-keeping cost nothing. `vscan.bench` says what each row does; `measure` and `report` here
measure and print it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from .bench import AFTER, BEFORE, MODELS, TIMES, Bench, Row, build, plan
from .eval.arguments import add, parse, positive
from .flops import decoder_flops, kv_cache_bytes
from .methods import METHODS


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most memory that PyTorch's allocator held during an action, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def attention_flops(query, key, value, *args, **kwargs) -> int:
    """FLOPs of the CPU's attention kernel, unknown to torch's counter: all pairs, as it counts those of GPUs."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """A clock. One CPU thread is timed by the CPU time it got, which other jobs of the machine change little."""
    if device.type == "cpu":
        return ("CPU time", time.process_time) if torch.get_num_threads() == 1 else ("wall time", time.perf_counter)
    return "wall time", lambda: torch.cuda.synchronize(device) or time.perf_counter()


@torch.inference_mode()
def measure(bench: Bench, rows: list[Row], rounds: int, new_tokens: int) -> None:
    """Fill the rows. What is counted comes first and is the warm-up; then all rows take turns, `rounds` times."""
    config, batch, embeds, selections = bench.config, bench.batch_size, {}, {}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    for index, row in enumerate(rows):
        with bench.reduced(row) as reduction:
            embeds[index] = bench.embed(row, reduction)
            row.peak = peak_bytes(partial(bench.whole, row, reduction), bench.device)
            with FlopCounterMode(display=False, custom_mapping=attention) as counter:
                cache = bench.prefill(row, embeds[index])
            row.lengths = [cache.get_seq_length(layer) for layer in range(config.num_hidden_layers)]
            bench.decode(row, cache, 1)
            selections[index] = reduction and bench.selection(reduction)
        size = (config.num_key_value_heads, head_dim, bench.model.dtype.itemsize)
        row.kv, row.counted = batch * kv_cache_bytes(row.lengths, *size), counter.get_total_flops()
        visual = [bench.num_views * number for number in row.visual]
        row.flops = batch * decoder_flops(visual, config.hidden_size, config.intermediate_size)

    _, clock = clock_of(bench.device)

    def timed(row: Row, name: str, action: Callable, *args, per: int = 1):
        start = clock()
        result = action(*args)
        row.seconds[name].append((clock() - start) / per)
        return result

    for number in range(rounds):
        for index, row in list(enumerate(rows))[:: -1 if number % 2 else 1]:
            with bench.reduced(row):
                if row.kind == "dense":
                    timed(row, "vision tower", bench.tower)
                if row.kind == "reduced":
                    timed(row, "selection+merging", selections[index])
                cache = timed(row, "prefill", bench.prefill, row, embeds[index])
                timed(row, "decode per token", bench.decode, row, cache, new_tokens, per=new_tokens)


def spread(values: list[float], unit: str = "") -> str:
    """Median and half of the distance between the quartiles, as seconds, as a share, or plain."""
    if not values:
        return ""
    low, median, high = torch.tensor(values).double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    scale, unit = (100, unit) if unit == "%" else (1000, "ms") if unit == "s" and median < 1 else (1, unit)
    return f"{scale * median:.4g} ±{scale * (high - low) / 2:.2g} {unit}".rstrip()


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, aligned so that it can be read as it stands."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *lines)]
    padded.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def report(rows: list[Row], full_layers: int) -> str:
    """The table, and below it ratios: medians over the rounds of ratios within a round.

    Args:
        rows: measured.
        full_layers: decoder layers of the whole model; where fewer were run, its ratios are worked out from the parts.
    """
    lines = [
        [
            row.kind if row.kind == "dense" else f"{row.kind} {row.average}",
            *(spread(row.seconds[name], "s") for name in TIMES),
            *(f"{size / 2**20:.1f} MiB" for size in (row.peak, row.kv)),
            *(f"{flops / 1e9:.4g} G" for flops in (row.flops, row.counted)),
        ]
        for row in rows
    ]
    text = table(["", *TIMES, "peak memory", "KV cache", "FLOPs by formula", "FLOPs counted"], lines)

    dense, times, ratios = rows[0], len(rows[0].visual) / full_layers, []
    for reduced, floor in zip(rows[1::2], rows[2::2], strict=True):
        line = [str(reduced.average)]
        # Dense and floor grow with the layers; what a reduction adds to its floor is there once.
        for name, part in (("prefill", 1.0), ("prefill", times), ("decode per token", 1.0)):
            rounds = list(zip(*(row.seconds[name] for row in (dense, reduced, floor)), strict=True))
            line.append(spread([d / (f + part * (r - f)) for d, r, f in rounds]))
            line.append(spread([1 + part * (r - f) / f for d, r, f in rounds]))
        pairs = zip(reduced.seconds["selection+merging"], dense.seconds["vision tower"], strict=True)
        line += [spread([above / below for above, below in pairs], "%"), f"{reduced.peak / dense.peak:.3f}"]
        ratios.append(line if times < 1 else line[:3] + line[5:])
    head = ["average", "prefill d/r", "r/f", f"{full_layers} layers: d/r", "r/f", "decode d/r", "r/f"]
    head = [*(head if times < 1 else head[:3] + head[5:]), "selection+merging/tower", "peak r/d"]
    return f"{text}\n\nd = dense, r = reduced, f = floor\n\n{table(head, ratios)}"


def prepare(args: argparse.Namespace, fields: dict) -> tuple[Bench, list[Row], int]:
    """The model with its prompts, the rows, and the decoder layers of the whole model.

    Raises:
        ValueError: for flags that do not go together, before a model is built.
    """
    if (args.model_path is None) != (args.model is not None and args.random_weights):
        raise ValueError("expected either --model-path, or --model together with --random-weights")
    if args.model_path and args.layers:
        raise ValueError(f"--layers: expected none beside --model-path, got {args.layers}")
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device: expected a device of this machine, got {args.device!r}") from error
    if args.threads:
        torch.set_num_threads(args.threads)

    if args.model_path:
        from llava.model.builder import load_model

        model = load_model(args.model_path, None, str(device), args.attn_implementation, args.dtype)
        bench = Bench(model, 5 if getattr(model.config, "image_grid_pinpoints", None) else 1, args.batch_size)
        num_layers = bench.config.num_hidden_layers
        return bench, plan(args.method, args.average, fields, num_layers, bench.num_tokens), num_layers
    views, full_layers, _ = MODELS[args.model]
    num_layers = args.layers or full_layers
    if num_layers > full_layers:
        raise ValueError(f"--layers: expected at most the {full_layers} of {args.model}, got {num_layers}")
    rows = plan(args.method, args.average, fields, num_layers, 576)
    dtype = ("float32" if device.type == "cpu" else "float16") if args.dtype == "auto" else args.dtype
    model = build(args.model, num_layers, getattr(torch, dtype), device, args.attn_implementation)
    return Bench(model, views, args.batch_size), rows, full_layers


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ImportError, ValueError: for bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m vscan.profile", add_help=False, allow_abbrev=False)
    add(parser, "--model", choices=list(MODELS), help="a model of this size, with --random-weights")
    add(parser, "--random-weights", action="store_true", help="no checkpoint is read")
    add(parser, "--model-path", help="a checkpoint folder, instead of these two")
    add(parser, "--layers", type=positive, help="decoder layers of --model; default: all")
    add(parser, "--average", type=positive, nargs="+", default=[192, 128, 64], help="tokens of a view, over all layers")
    add(parser, "--method", default="vscan", choices=list(METHODS))
    add(parser, "--batch-size", type=positive, default=1, help="prompts at a time")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add(parser, "--attn-implementation", choices=["sdpa", "eager", "flash_attention_2"])
    add(parser, "--rounds", type=positive, default=7, help="how often all rows take turns")
    add(parser, "--new-tokens", type=positive, default=8, help="tokens decoded after each prompt")
    add(parser, "--threads", type=positive, help="threads on a CPU; one is timed in CPU time")
    args, hyper_parameters = parse(parser, argv)
    bench, rows, full_layers = prepare(args, hyper_parameters)
    print(
        f"{args.model or args.model_path}, {bench.config.num_hidden_layers} of {full_layers} decoder layers, "
        f"{args.method}, {bench.model.dtype}, {bench.config._attn_implementation}, batch {args.batch_size}, "
        f"{bench.num_views} x {bench.num_tokens} visual and {BEFORE + AFTER} text tokens"
    )
    print(
        f"{clock_of(bench.device)[0]} on {bench.device}, {torch.get_num_threads()} CPU threads, {args.rounds} rounds, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n",
        flush=True,
    )
    measure(bench, rows, args.rounds, args.new_tokens)
    print(report(rows, full_layers))


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its start and stop otherwise
    try:
        main(sys.argv[1:])
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
