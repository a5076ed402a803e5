"""The flags of a method at a budget on a checkpoint, as the scripts of benchmarks give them; imports no torch.

    python scripts/reduction_flags.py llava1_5 vscan 11.1 --model ../models/llava-v1.5-13b

Budgets are averages over the decoder's layers, and every method finds its own way there (`--average`). Those whose
published commands have lists get lists: VScan prunes before the layer that the checkpoint names
(`reduction.vscan.prune_layer` in its config.json), else before the middle one; without a config.json the decoder is
that of the family's published 7B.
"""

from pathlib import Path

from vscan.config import ReductionConfig
from vscan.eval.arguments import Parser, run_command
from vscan.flops import layer_schedule
from vscan.io.checkpoint import check_config
from vscan.methods import METHODS

NUM_LAYERS = {"llava1_5": 32, "llava1_6": 32, "video_llava": 32, "qwen2_5_vl": 28}  # of the published 7B
TOKENS = {"11.1": 64, "22.2": 128, "33.3": 192}  # of 576, averaged over the decoder's layers
FRAME_TOKENS = {"25": 64, "22.2": 57, "11.1": 28, "5.6": 14}  # of a frame's 256: VScan's budget, and VisPruner's three
SHARES = {"11.1": 0.111, "22.2": 0.222, "33.3": 0.333, "50": 0.5}  # the last one of RefCOCO
# Published shares: what the encoder keeps, and what of that the middle layer keeps.
STAGES = {"vscan": {"11.1": (0.167, 0.333), "22.2": (0.333, 0.333), "33.3": (0.5, 0.333), "50": (0.6, 0.67)}}
# Methods whose average is what the encoder keeps, and is given as that.
ENCODERS = ("vispruner", "fastervlm", "random", "downsample")


def decoder_of(family: str, method: str, model: Path, layer: str) -> tuple[int, int]:
    """A checkpoint's number of decoder layers, and the one before which a method prunes.

    Args:
        family: whose published 7B it is where the folder has no config.json.
        model: the checkpoint's folder.
        layer: another one than the checkpoint's; "" is that.

    Raises:
        ValueError: for a layer that the decoder does not have or that is its first, and for a config that is none.
    """
    file = model / "config.json"
    config = check_config(model) if file.is_file() else {"num_hidden_layers": NUM_LAYERS[family]}
    num_layers = (config.get("text_config") or config).get("num_hidden_layers", 32)  # what transformers leaves out
    of_checkpoint = ((config.get("reduction") or {}).get(method) or {}).get("prune_layer")
    chosen = layer or str(num_layers // 2 if of_checkpoint is None else of_checkpoint)
    if chosen not in map(str, range(1, num_layers)):
        source = "LAYER" if layer else f"{file}: reduction.{method}.prune_layer"
        raise ValueError(f"{source}: expected a decoder layer of 1 to {num_layers - 1}, got {chosen!r}")
    return num_layers, int(chosen)


def llava_flags(method: str, tokens: int | None, num_layers: int, layer: int) -> list[str]:
    """Counts of an image's tokens, of LLaVA-NeXT of each crop's, of a clip each frame's; None is the dense model."""
    if tokens is None:
        return []
    if method in STAGES:
        early, late = layer_schedule(tokens, num_layers, layer)
        return ["--layer_list", f"[{layer}]", "--image_token_list", f"[{late}]", "--visual_token_num", str(early)]
    return ["--visual_token_num" if method in ENCODERS else "--average", str(tokens)]


def qwen_flags(method: str, budget: str, num_layers: int, layer: int) -> list[str]:
    """Shares of an image's tokens. A first share is scaled, so that another layer than the middle one has its average.

    With the share e of all tokens before layer k of L, and s of these from it on, the average is e (k + (L - k) s) / L.
    """
    lists = ["--layer-list", "[]", "--image-token-ratio-list", "[]"]
    if budget == "dense":
        return [*lists, "--image-token-ratio", "1.0"]
    if method in STAGES:
        early, late = STAGES[method][budget]
        early = round(early * (1 + late) / 2 * num_layers / (layer + (num_layers - layer) * late), 3)
        lists = ["--layer-list", f"[{layer}]", "--image-token-ratio-list", f"[{late}]"]
        return [*lists, "--image-token-ratio", str(early)]
    if method in ENCODERS:
        return [*lists, "--image-token-ratio", str(SHARES[budget])]
    return ["--average", str(SHARES[budget])]


def flags(family: str, method: str, budget: str, model: Path, layer: str = "") -> list[str]:
    """The flags of a method at a budget.

    Args:
        family: of the scripts.
        method: a name in `vscan.METHODS`.
        budget: percent of the visual tokens that stay, or dense.
        model: the checkpoint's folder; it need not be there.
        layer: the decoder layer before which VScan prunes; "" is the checkpoint's.

    Raises:
        ValueError: for a choice that is none, and for a layer where none is pruned.
    """
    of_family = {"qwen2_5_vl": SHARES, "video_llava": FRAME_TOKENS}.get(family, TOKENS)
    budgets = {**of_family, "dense": None}
    if method not in METHODS:
        raise ValueError(f"METHOD: expected one of {', '.join(METHODS)}, got {method!r}")
    if budget not in budgets:
        names = FRAME_TOKENS if family == "video_llava" else TOKENS
        raise ValueError(f"BUDGET: expected {', '.join(names)} or dense, got {budget!r}")
    prunes = method in STAGES and budget != "dense"
    if layer and not prunes:
        pruned = "dense" if budget == "dense" else method
        names = " or ".join(STAGES)
        raise ValueError(
            f"LAYER: expected one with METHOD={names} alone, which prunes there, got {layer!r} with {pruned}"
        )
    decoder = decoder_of(family, method, model, layer) if prunes else (0, 0)
    is_default = budget == "dense" or method == ReductionConfig().method  # what the commands do unasked
    named = [] if is_default else ["--method", method]
    if family == "qwen2_5_vl":
        return named + qwen_flags(method, budget, *decoder)
    return named + llava_flags(method, budgets[budget], *decoder)


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        ValueError: for a choice that is none.
    """
    parser = Parser(prog="python scripts/reduction_flags.py")
    parser.add_argument("family", choices=list(NUM_LAYERS))
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("budget", metavar="BUDGET")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--layer", default="", help="before which VScan prunes; default: the checkpoint's")
    args = parser.parse_args(argv)
    print(*flags(args.family, args.method, args.budget, args.model, args.layer))


if __name__ == "__main__":
    run_command(main)
