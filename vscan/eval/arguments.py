"""The flags that every evaluation command shares. Both spellings work: --layer_list and --layer-list."""

import argparse
import ast
import math

from ..config import POSITIONS, Budget, ReductionConfig
from ..fields import READABLE, REQUIRED, Field
from ..methods import METHODS, method_fields
from .guard import Parser, run_command

__all__ = ["Parser", "run_command"]  # what every command needs, beside the flags below


def add(parser, name: str, **options) -> None:
    """Add a flag under its published spelling and the other one; its help says the default, where there is one."""
    default, text = options.get("default"), options.get("help", "")
    if default not in (None, False, argparse.SUPPRESS) and "default" not in text:
        options["help"] = f"{text}; default: {default}".removeprefix("; ").replace("%", "%%")
    other = "--" + (name[2:].replace("_", "-") if "_" in name else name[2:].replace("-", "_"))
    parser.add_argument(*dict.fromkeys((name, other)), **options)


def budget(text: str) -> int | float:
    """A count (96) or a share (0.167), as the command line has it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise argparse.ArgumentTypeError(f"expected a count such as 96 or a share such as 0.167, got {text!r}")
    return value


def positive(text: str) -> int:
    """An int of at least 1."""
    return _int(text, 1)


def not_negative(text: str) -> int:
    """An int of at least 0."""
    return _int(text, 0)


def _int(text: str, least: int) -> int:
    # Python reads no int of more than 4300 digits, and 18 are more than anything here can count.
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected an int of at least {least}, got {text!r}")
    return int(text)


def temperature(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 (greedy) or a number above it, got {text!r}")
    return value


def probability(text: str) -> float:
    """A number in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # in no range


def add_question_arguments(parser: argparse.ArgumentParser, has_folder: bool = True) -> None:
    """Add what is asked, and where answers go; `has_folder` where pictures lie in a folder beside."""
    add(parser, "--question-file", required=True, help="questions, one JSON object a line")
    if has_folder:
        add(parser, "--image-folder", required=True, help="folder that the questions' images are relative to")
    add(parser, "--answers-file", required=True, help="answers, one JSON object a line; continued where it stopped")
    add(parser, "--num-chunks", type=positive, default=1, help="cut the questions into this many chunks")
    add(parser, "--chunk-idx", type=int, default=0, help="the chunk to answer, from 0")


def add_generation_arguments(parser: argparse.ArgumentParser, max_new_tokens: int, default: float = 0.2) -> None:
    """Add who answers, and how; `default` is the temperature's."""
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--temperature", type=temperature, default=default, help=f"0 is greedy; default: {default:g}")
    add(parser, "--top_p", type=probability, default=None)
    add(parser, "--num_beams", type=positive, default=1)
    add(parser, "--max_new_tokens", type=positive, default=max_new_tokens)
    add(parser, "--batch-size", type=positive, default=1, help="prompts at a time; 1 as published")
    add(
        parser,
        "--num-workers",
        type=not_negative,
        default=2,
        help="processes that prepare images; 0: none",
    )
    add(
        parser,
        "--on-error",
        default="stop",
        choices=["stop", "skip"],
        help="what to do about a question that cannot be answered",
    )
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add(parser, "--attn-implementation", default=None, choices=["sdpa", "eager", "flash_attention_2"])


def add_reduction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method and its budgets; leaving all of them out runs the dense model."""
    add(parser, "--method", default="vscan", choices=list(METHODS))
    add(parser, "--visual_token_num", type=budget, default=None, help="tokens per image after the vision encoder")
    add(parser, "--layer_list", default=None, help="decoder layers before which tokens are pruned, such as '[16]'")
    add(parser, "--image_token_list", default=None, help="tokens per image that each of them keeps, such as '[32]'")
    add_schedule_arguments(parser)
    add(parser, "--positions", default="auto", choices=POSITIONS)


def add_capture_argument(parser: argparse.ArgumentParser) -> None:
    """Add whether a reduced model runs as recorded graphs, which changes how fast it answers, and not what."""
    help_text = "run a reduced model as CUDA graphs, recorded once for prompts of one shape"
    add(parser, "--capture", action="store_true", help=help_text)


def add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what stands in place of budgets: an average, to which the method finds its own way, or a published name."""
    average_help = "in place of budgets: visual tokens over the decoder's layers, a count or a share of them all"
    add(parser, "--average", type=budget, default=None, help=average_help)
    add(parser, "--preset", default=None, help="in place of budgets: the name of a published schedule of the method")


def generation(args: argparse.Namespace) -> dict:
    """The keywords of `generate` that the flags ask for; greedy leaves a checkpoint's sampling aside, and no more."""
    sampling = {"do_sample": False, "temperature": None, "top_p": None}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    return {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens, **sampling}


def parse(
    parser: argparse.ArgumentParser, argv: list[str], of_model: dict[str, dict] | None = None
) -> tuple[argparse.Namespace, dict]:
    """Parse a command line, the chosen method's hyper-parameters included.

    Args:
        parser: made with add_help=False; --help is added here, because it also shows the method's flags.
        of_model: {method: {hyper-parameter: its default on the model that the command runs}}, for --help.

    Returns:
        The flags, and the hyper-parameters that were given.

    Raises:
        ValueError: for a method with a field that no command line can give, or that the command has as a flag.
    """
    chooser = Parser(prog=parser.prog, add_help=False)
    add(chooser, "--method", default=parser.get_default("method"), choices=list(METHODS))
    method = chooser.parse_known_args(argv)[0].method
    fields = method_fields(method)
    parser = Parser(prog=parser.prog, epilog=parser.epilog, parents=[parser], add_help=False)
    group = parser.add_argument_group(f"hyper-parameters of {method}")
    for field in fields.values():
        if field.expected is None:
            raise ValueError(f"method {method!r}: field {field.name!r}: expected {READABLE}, got {field.annotation!r}")
        default = (of_model or {}).get(method, {}).get(field.name, field.default)
        try:
            add_field(group, field, default)
        except argparse.ArgumentError as error:
            raise ValueError(f"method {method!r}: field {field.name!r}: expected another name than a flag's") from error
    parser.add_argument("-h", "--help", action="help", help="show this, with the flags of --method")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        of_method = ", ".join(f"--{name}" for name in fields) or "none"
        parser.error(f"unrecognized arguments: {' '.join(unknown)} (hyper-parameters of {method}: {of_method})")
    return args, {name: getattr(args, name) for name in fields if hasattr(args, name)}


def add_field(group, field: Field, default) -> None:
    """Add a hyper-parameter's flag; left out it is no part of what was given."""

    def read(text: str):
        try:
            return field.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    kind = {"type": read, "metavar": field.name.upper()}
    if field.expected == "True or False":
        kind = {"action": argparse.BooleanOptionalAction}
    required = default is REQUIRED
    words = [field.help.replace("%", "%%"), "must be given" if required else f"default: {default}".replace("%", "%%")]
    add(
        group,
        f"--{field.name}",
        default=argparse.SUPPRESS,
        required=required,
        help="; ".join(filter(None, words)),
        **kind,
    )


def parse_list(text: str | None, name: str) -> list | None:
    """Read a list from a command line: '[8,16]' -> [8, 16], 'None' or no flag at all -> None; ValueError otherwise."""
    try:
        value = None if text is None else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list such as '[16]', or None, got {text!r}")
    return None if value is None else list(value)


def config_of_lists(visual_tokens: Budget | None, layer_list, image_token_list, **rest) -> ReductionConfig | None:
    """The configuration that the published flags stand for; None (the dense model) where nothing is to be reduced.

    Args:
        visual_tokens: `--visual_token_num`.
        layer_list, image_token_list: the two lists, of equal length, or None.

    Raises:
        ValueError: for lists of unequal length.
    """
    layer_list, image_token_list = layer_list or [], image_token_list or []
    if len(layer_list) != len(image_token_list):
        raise ValueError(
            "layer_list and image_token_list: expected one budget per layer, "
            f"got {len(layer_list)} layers {layer_list} and {len(image_token_list)} budgets {image_token_list}"
        )
    if visual_tokens is None and not layer_list:
        return None
    stages = tuple(zip(layer_list, image_token_list, strict=True))
    return ReductionConfig(visual_tokens=visual_tokens, layers=stages, **rest)


def by_schedule(args: argparse.Namespace, hyper_parameters: dict, budgets: list[str]) -> ReductionConfig | None:
    """The reduction that --average or --preset asks for; None where neither was given.

    Args:
        budgets: the flags of budgets that were given.

    Raises:
        ValueError: for more than one way to say it, or an average that is none.
    """
    asked = [f"--{name}" for name in ("average", "preset") if getattr(args, name) is not None]
    if not asked:
        return None
    if len(asked) + len(budgets) > 1:
        raise ValueError(f"expected one of --average, --preset, or budgets, got {' and '.join([*asked, *budgets])}")
    how = {"positions": args.positions, "fields": hyper_parameters}
    return ReductionConfig(args.method, average=args.average, preset=args.preset, **how)


def reduction_config(args: argparse.Namespace, hyper_parameters: dict) -> ReductionConfig | None:
    """The reduction that the flags ask for, or None for the dense model.

    Raises:
        ValueError: for lists or budgets that are none, or that stand beside --average or --preset.
    """
    budgets = [
        name for name in ("visual_token_num", "layer_list", "image_token_list") if getattr(args, name) is not None
    ]
    return by_schedule(args, hyper_parameters, [f"--{name}" for name in budgets]) or config_of_lists(
        args.visual_token_num,
        parse_list(args.layer_list, "--layer_list"),
        parse_list(args.image_token_list, "--image_token_list"),
        method=args.method,
        positions=args.positions,
        fields=hyper_parameters,
    )
