"""The table of `python -m vscan.profile`: `measure` times what `bench` and `bench_qwen` set up, `report` prints it,
`run` is the whole command once its flags are read."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from ..compat import attention_implementation
from ..flops import decoder_flops, kv_cache_bytes
from ..io import load
from . import bench_qwen, bench_video
from .bench import MODELS, TIMES, Bench, Row, build, plan
from .timing import clock_of, peak_bytes, spread, table

OUTSIDE_BLOCKS = "vision tower without its blocks"  # timed where the tower is cut


def attention_flops(query, key, value, *args, **kwargs) -> int:
    """FLOPs of the CPU's attention kernel, unknown to torch's counter: all pairs, as it counts those of GPUs."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


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
        row.seconds.setdefault(name, []).append((clock() - start) / per)
        return result

    for number in range(rounds):
        for index, row in list(enumerate(rows))[:: -1 if number % 2 else 1]:
            with bench.reduced(row):
                if row.kind == "dense":
                    timed(row, "vision tower", bench.tower)
                    if bench.vision_depth:
                        timed(row, OUTSIDE_BLOCKS, bench.outside_blocks)
                if row.kind == "reduced":
                    timed(row, Bench.stage, selections[index])
                cache = timed(row, "prefill", bench.prefill, row, embeds[index])
                timed(row, "decode per token", bench.decode, row, cache, new_tokens, per=new_tokens)


def whole_tower(dense: Row, num_blocks: int, depth: int) -> list[float]:
    """Seconds of a tower of `depth` blocks in each round, worked out from those of one cut to `num_blocks`."""
    pairs = zip(dense.seconds["vision tower"], dense.seconds[OUTSIDE_BLOCKS], strict=True)
    return [outside + (tower - outside) * depth / num_blocks for tower, outside in pairs]


def report(rows: list[Row], full_layers: int, stage: str = Bench.stage, vision: tuple[int, int] | None = None) -> str:
    """The table, and below it ratios: medians over the rounds of ratios within a round.

    Args:
        rows: measured.
        full_layers: decoder layers of the whole model; where fewer were run, its ratios are worked out from the parts.
        stage: what the vision stage adds to the tower.
        vision: blocks of the tower that was run, and of the whole one, where it was cut.
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
    times_head = [name.replace(Bench.stage, stage) for name in TIMES]
    text = table(["", *times_head, "peak memory", "KV cache", "FLOPs by formula", "FLOPs counted"], lines)

    dense, times, ratios = rows[0], len(rows[0].visual) / full_layers, []
    tower = whole_tower(dense, *vision) if vision else dense.seconds["vision tower"]
    for reduced, floor in zip(rows[1::2], rows[2::2], strict=True):
        line = [str(reduced.average)]
        # Dense and floor grow with the layers; what a reduction adds to its floor is there once.
        for name, part in (("prefill", 1.0), ("prefill", times), ("decode per token", 1.0)):
            rounds = list(zip(*(row.seconds[name] for row in (dense, reduced, floor)), strict=True))
            line.append(spread([d / (f + part * (r - f)) for d, r, f in rounds]))
            line.append(spread([1 + part * (r - f) / f for d, r, f in rounds]))
        pairs = zip(reduced.seconds[Bench.stage], tower, strict=True)
        line += [spread([above / below for above, below in pairs], "%"), f"{reduced.peak / dense.peak:.3f}"]
        ratios.append(line if times < 1 else line[:3] + line[5:])
    head = ["average", "prefill d/r", "r/f", f"{full_layers} layers: d/r", "r/f", "decode d/r", "r/f"]
    whole = f"{stage}/tower" + (f" of {vision[1]} blocks" if vision else "")
    head = [*(head if times < 1 else head[:3] + head[5:]), whole, "peak r/d"]
    return f"{text}\n\nd = dense, r = reduced, f = floor\n\n{table(head, ratios)}"


def device_of(args: Namespace) -> torch.device:
    """The device that the flags ask for, with as many threads as they ask for.

    Raises:
        ValueError: for a device that is not there.
    """
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device: expected a device of this machine, got {args.device!r}") from error
    if args.threads:
        torch.set_num_threads(args.threads)
    return device


def dtype_of(args: Namespace, device: torch.device) -> torch.dtype:
    """The dtype that the flags ask for."""
    return getattr(torch, ("float32" if device.type == "cpu" else "float16") if args.dtype == "auto" else args.dtype)


def prepare(args: Namespace, fields: dict) -> tuple[Bench, list[Row], int]:
    """The model with its prompts, the rows, and the decoder layers of the whole model.

    Raises:
        ValueError: for flags that do not fit the model, before it is built.
    """
    device = device_of(args)
    if args.model in bench_qwen.MODELS:
        return prepare_qwen(args, fields, device)
    if args.model_path:
        model = load(args.model_path, str(device), args.dtype, args.attn_implementation).model
        if hasattr(model.base_model, "visual"):
            bench = bench_qwen.QwenBench(model, grids_of(args), args.batch_size)
            num_layers = bench.config.num_hidden_layers
            averages = args.average or bench_qwen.AVERAGES
            return bench, bench_qwen.plan(args.method, averages, fields, num_layers, bench.images), num_layers
        if hasattr(model.base_model, "video_tower"):
            bench = bench_video.VideoBench(model, args.batch_size)
            num_layers, num_tokens = bench.config.num_hidden_layers, bench.grid[0] * bench.grid[1]
            return bench, bench_video.plan(args.method, args.average, fields, num_layers, num_tokens), num_layers
        bench = Bench(model, 5 if getattr(model.config, "image_grid_pinpoints", None) else 1, args.batch_size)
        num_layers = bench.config.num_hidden_layers
        return bench, plan(args.method, args.average, fields, num_layers, bench.num_tokens), num_layers
    is_video = args.model in bench_video.MODELS
    full_layers = bench_video.MODELS[args.model] if is_video else MODELS[args.model][1]
    num_layers = args.layers or full_layers
    if num_layers > full_layers:
        raise ValueError(f"--layers: expected at most the {full_layers} of {args.model}, got {num_layers}")
    if is_video:
        rows = bench_video.plan(args.method, args.average, fields, num_layers)
        model = bench_video.build(num_layers, dtype_of(args, device), device, args.attn_implementation)
        return bench_video.VideoBench(model, args.batch_size), rows, full_layers
    rows = plan(args.method, args.average, fields, num_layers, 576)
    model = build(args.model, num_layers, dtype_of(args, device), device, args.attn_implementation)
    return Bench(model, MODELS[args.model][0], args.batch_size), rows, full_layers


def grids_of(args: Namespace) -> list[tuple[int, int, int]]:
    """Of the pictures of a Qwen2.5-VL prompt, in patches."""
    return [bench_qwen.grid_of(*size) for size in args.image_size or [(896, 896)]]


def prepare_qwen(args: Namespace, fields: dict, device: torch.device) -> tuple[Bench, list[Row], int]:
    """`prepare` for a Qwen2.5-VL with random weights."""
    full_layers, depth = bench_qwen.MODELS[args.model]["num_hidden_layers"], bench_qwen.VISION_DEPTH
    num_layers, num_blocks = args.layers or full_layers, args.vision_layers or depth
    if num_layers > full_layers:
        raise ValueError(f"--layers: expected at most the {full_layers} of {args.model}, got {num_layers}")
    if num_blocks > depth or num_blocks % bench_qwen.VISION_PERIOD:
        raise ValueError(f"--vision-layers: expected 8, 16, 24 or {depth}, got {num_blocks}")
    grids = grids_of(args)
    images = [height * width // 4 for _, height, width in grids]
    rows = bench_qwen.plan(args.method, args.average or bench_qwen.AVERAGES, fields, num_layers, images)
    model = bench_qwen.build(
        args.model, num_layers, num_blocks, dtype_of(args, device), device, args.attn_implementation
    )
    cut = depth if num_blocks < depth else None
    return bench_qwen.QwenBench(model, grids, args.batch_size, cut), rows, full_layers


def run(args: Namespace, fields: dict) -> None:
    """Measure what the flags ask for, and print it.

    Args:
        args: of `vscan.profile`, checked.
        fields: the method's hyper-parameters.

    Raises:
        FileNotFoundError, ImportError, ValueError: for what does not fit the model or this machine.
    """
    bench, rows, full_layers = prepare(args, fields)
    print(
        f"{args.model or args.model_path}, {bench.config.num_hidden_layers} of {full_layers} decoder layers, "
        f"{args.method}, {bench.model.dtype}, {attention_implementation(bench.model)}, batch {args.batch_size}, "
        f"{bench}"
    )
    print(
        f"{clock_of(bench.device)[0]} on {bench.device}, {torch.get_num_threads()} CPU threads, {args.rounds} rounds, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n",
        flush=True,
    )
    measure(bench, rows, args.rounds, args.new_tokens)
    vision = (len(bench.visual_tower.blocks), bench.vision_depth) if bench.vision_depth else None
    print(report(rows, full_layers, bench.stage, vision))
