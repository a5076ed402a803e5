"""The flags of the Qwen commands: budgets are shares of an image's tokens, whose number depends on the picture."""

import argparse

from vscan.config import POSITIONS, ReductionConfig
from vscan.eval.arguments import (
    add,
    add_capture_argument,
    add_schedule_arguments,
    by_schedule,
    config_of_lists,
    parse_list,
    positive,
    probability,
)
from vscan.methods import METHODS

# What `vscan.models.qwen2_5_vl` settles once the model is there.
HYPER_PARAMETERS = {
    "vscan": {"local_layer": "the first with full attention", "global_layer": -1, "window": 4, "capped": True},
    "vispruner": {"attention_layer": -1},
    "fastervlm": {"attention_layer": -1},
    "scope": {"attention_layer": -1},
}


class Store(argparse.Action):
    """Stores a value, and in `given` that it was given: what has a default of its own may stand beside --average."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.given = [*getattr(namespace, "given", []), option_string]


def add_reduction_arguments(parser: argparse.ArgumentParser, layers: str, ratios: str, ratio: float) -> None:
    """Add the method and its budgets; the last three arguments are the defaults of the published flags."""
    add(parser, "--method", default="vscan", choices=list(METHODS))
    add(
        parser,
        "--image-token-ratio",
        action=Store,
        type=probability,
        default=ratio,
        help=f"share of an image's tokens that the vision encoder keeps; default: {ratio:g}",
    )
    layers_help = f"decoder layers before which tokens are pruned; default: {layers}"
    add(parser, "--layer-list", action=Store, default=layers, help=layers_help)
    add(
        parser,
        "--image-token-ratio-list",
        action=Store,
        default=ratios,
        help=f"share of the tokens that are left that each of these layers keeps; default: {ratios}",
    )
    add_schedule_arguments(parser)
    add_capture_argument(parser)
    add(parser, "--positions", default="auto", choices=POSITIONS)


def add_pixel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bounds of a picture's size; leaving them out takes the published command's."""
    add(parser, "--min-pixels", type=positive, default=None, help="least pixels of a picture after its resize")
    add(parser, "--max-pixels", type=positive, default=None, help="most pixels of a picture after its resize")


def reduction_config(args: argparse.Namespace, hyper_parameters: dict) -> ReductionConfig | None:
    """The reduction that the flags ask for; None, the dense model, where they keep everything.

    Raises:
        ValueError: for lists that are none or do not fit each other, for shares outside (0, 1], and for any of them
            beside --average or --preset.
    """
    asked = by_schedule(args, hyper_parameters, getattr(args, "given", []))
    if asked is not None:
        return asked
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
    return config_of_lists(
        None if args.image_token_ratio == 1 else args.image_token_ratio,
        layers,
        [float(value) for value in ratios],
        method=args.method,
        positions=args.positions,
        fields=hyper_parameters,
    )
