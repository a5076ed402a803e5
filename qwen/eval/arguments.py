"""The flags of the Qwen commands: budgets are shares of an image's tokens, whose number depends on the picture."""

import argparse

from vscan.config import POSITIONS, ReductionConfig, parse_list
from vscan.eval.arguments import add, positive, probability
from vscan.methods import METHODS

# What `vscan.models.qwen2_5_vl.defaults` settles once the model is there.
HYPER_PARAMETERS = {
    "vscan": {"local_layer": "the first with full attention", "global_layer": -1, "window": 4, "capped": True},
    "vispruner": {"attention_layer": -1},
    "fastervlm": {"attention_layer": -1},
}


def add_reduction_arguments(parser: argparse.ArgumentParser, layers: str, ratios: str, ratio: float) -> None:
    """Add the method and its budgets; the last three arguments are the defaults of the published flags."""
    add(parser, "--method", default="vscan", choices=list(METHODS))
    add(
        parser,
        "--image-token-ratio",
        type=probability,
        default=ratio,
        help=f"share of an image's tokens that the vision encoder keeps; default: {ratio:g}",
    )
    add(
        parser, "--layer-list", default=layers, help=f"decoder layers before which tokens are pruned; default: {layers}"
    )
    add(
        parser,
        "--image-token-ratio-list",
        default=ratios,
        help=f"share of the tokens that are left that each of these layers keeps; default: {ratios}",
    )
    add(parser, "--positions", default="auto", choices=POSITIONS)


def add_pixel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bounds of a picture's size; leaving them out takes the published command's."""
    add(parser, "--min-pixels", type=positive, default=None, help="least pixels of a picture after its resize")
    add(parser, "--max-pixels", type=positive, default=None, help="most pixels of a picture after its resize")


def reduction_config(args: argparse.Namespace, hyper_parameters: dict) -> ReductionConfig | None:
    """The reduction that the flags ask for; None, the dense model, where they keep everything.

    Raises:
        ValueError: for lists that are none or do not fit each other, and for shares outside (0, 1].
    """
    layers = parse_list(args.layer_list, "--layer-list") or []
    ratios = parse_list(args.image_token_ratio_list, "--image-token-ratio-list") or []
    for value in ratios:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ValueError(f"--image-token-ratio-list: expected shares in (0, 1], got {value!r}")
    if len(layers) != len(ratios):
        raise ValueError(
            "--layer-list and --image-token-ratio-list: expected one share per layer, "
            f"got {len(layers)} layers {layers} and {len(ratios)} shares {ratios}"
        )
    return ReductionConfig.from_lists(
        None if args.image_token_ratio == 1 else args.image_token_ratio,
        layers,
        [float(value) for value in ratios],
        method=args.method,
        positions=args.positions,
        fields=hyper_parameters,
    )
