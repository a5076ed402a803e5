"""`reduce(model, ...)` for a with block, `apply(model, ...)` for a handle: what a user calls."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .cache import Force, PromptState
from .capture import Capture
from .compat import check
from .config import Budget, ReductionConfig
from .methods import make_method
from .models import family_of, unwrapped
from .models.towers import TowerMemory
from .plan import Plan
from .stats import Stats, collect


class Reduction:
    """A reduction of one model: what was asked for, how it fits that model, and what the last prompt became.

    Args:
        model: the model that generates.
        config: what was asked for.
        processor: of the model, for methods that read text.
        text: what these read, one a prompt, which may be set anew before every call; None: what follows the prompt's
            last picture.
        capture_bytes: the most that recorded graphs may take; None records none.

    Raises:
        ValueError: for a budget, a layer, a hyper-parameter or a model that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ReductionConfig,
        processor=None,
        text: list[str] | None = None,
        capture_bytes: int | None = None,
    ):
        self.family = family_of(model)
        of_checkpoint = (getattr(model.config, "reduction", None) or {}).get(config.method) or {}
        fields = {**self.family.defaults(config.method), **of_checkpoint, **config.fields}
        self.config, self.method = config, make_method(config.method, fields)
        self.fitted = self.family.fit(config, self.method)
        self.read = self.method.prepare(model, processor)
        self.processor, self.text = processor, text
        self.tower_memory: TowerMemory | None = None
        self.last: PromptState | None = None
        self.force = Force()
        self.capture = None if capture_bytes is None else Capture(self, capture_bytes)
        self._undo: Callable[[], None] | None = None

    def install(self) -> None:
        """Put it in force."""
        self._undo = self.family.install(self)

    def plan(self, **inputs) -> Plan:
        """What will become of a prompt: `stats()` before it runs, of the keywords of the model's call.

        The vision encoder runs, the decoder does not; the reduction must be in force.

        Raises:
            ValueError: for a call without pictures.
        """
        return Plan.of(self.fitted, self.family.prompt_of(inputs))

    def kept(self, stage: int = -1) -> Tensor:
        """Which columns of the last prompt a stage left.

        Args:
            stage: 0 is what the vision encoder left, 1 what the first pruning left, -1 what came out of the model.

        Returns:
            Long [B, S], columns of the full prompt; -1 where a row was filled up.
        """
        segment = self._last().segments[stage]
        return segment.columns if segment.valid is None else segment.columns.masked_fill(~segment.valid, -1)

    def stats(self) -> Stats:
        """What the last prompt became: tokens per stage and where, what the cache held, FLOPs, average retention.

        Raises:
            RuntimeError: if none has run, or if the last prompt had no pictures.
        """
        return collect(self, self._last())

    def remove(self) -> None:
        """Give the model back dense, bit for bit. Called again it does nothing, whatever else is in force by then."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
            if self.capture is not None:
                self.capture.clear()
            self.force.ended = "whose reduction was removed"

    def _last(self) -> PromptState:
        if self.last is None:
            raise RuntimeError("expected a prompt with images to have run last under this reduction, none has")
        return self.last


def apply(
    model: nn.Module,
    method: str = "vscan",
    visual_tokens: Budget | None = None,
    layers: Mapping[int, Budget] | None = None,
    positions: str = "auto",
    average: Budget | None = None,
    preset: str | None = None,
    group: str | None = None,
    frame_cls: str | None = None,
    processor: Any = None,
    text: list[str] | None = None,
    capture: bool = False,
    capture_bytes: int = 2**30,
    **fields: Any,
) -> Reduction:
    """Reduce the visual tokens of a model until the returned handle's `remove()` is called; arguments and errors are
    those of `reduce`."""
    config = ReductionConfig(method, visual_tokens, layers or (), positions, fields, average, preset, group, frame_cls)
    return apply_config(model, config, processor, text, capture, capture_bytes)


def apply_config(
    model: nn.Module, config: ReductionConfig, processor=None, text=None, capture=False, capture_bytes=2**30
) -> Reduction:
    """`apply` for a configuration that is at hand."""
    model = unwrapped(model)
    reduction = Reduction(model, config, processor, text, check_capture(capture, capture_bytes))
    check(model)
    reduction.install()
    return reduction


def check_capture(capture: bool, capture_bytes: int) -> int | None:
    """The most bytes that recorded graphs may take, None for no graphs; ValueError for what is neither."""
    if not isinstance(capture, bool):
        raise ValueError(f"capture: expected True or False, got {capture!r}")
    if isinstance(capture_bytes, bool) or not isinstance(capture_bytes, int) or capture_bytes < 1:
        raise ValueError(f"capture_bytes: expected an int of at least 1, got {capture_bytes!r}")
    return capture_bytes if capture else None


class Reducing:
    """`apply` for the length of a with block; may be entered again."""

    def __init__(self, *arguments):
        self.arguments, self.reductions = arguments, []

    def __enter__(self) -> Reduction:
        self.reductions.append(apply_config(*self.arguments))
        return self.reductions[-1]

    def __exit__(self, *error) -> None:
        self.reductions.pop().remove()


def reduce(
    model: nn.Module,
    method: str = "vscan",
    visual_tokens: Budget | None = None,
    layers: Mapping[int, Budget] | None = None,
    positions: str = "auto",
    average: Budget | None = None,
    preset: str | None = None,
    group: str | None = None,
    frame_cls: str | None = None,
    processor: Any = None,
    text: list[str] | None = None,
    capture: bool = False,
    capture_bytes: int = 2**30,
    **fields: Any,
) -> Reducing:
    """Reduce the visual tokens of a model for the length of a with block.

    While it is in force, every thread that runs this model gets it reduced. A cache that it has filled is refused
    afterwards, and the model cannot be copied or pickled meanwhile.

    Args:
        model: a stock transformers model (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration,
            VideoLlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration) or
            one loaded by `llava.model.builder`.
        method: a name in `vscan.METHODS`.
        visual_tokens: tokens kept per view (image, crop, frame) after the vision encoder: a count, or a share in
            (0, 1]; None keeps all.
        layers: {decoder layer: budget}: before that layer visual tokens are pruned to the budget; a count is per view,
            a share is of the tokens that are left.
        average: instead of both, visual tokens of a view on average over the decoder's layers, a count or a share.
        preset: instead of both, the name of a published schedule of the method.
        positions: "auto" (the method's, and the model's), "compact" or "original".
        group: what one budget is for, "view" or "image" (all crops of a picture, all frames of a clip); None is the
            method's own.
        frame_cls: what becomes of the [CLS] token of a clip's frame, on models whose frames have one: "keep", the
            default, has it beside every budget (methods that reduce in the decoder alone rank it), "drop" none.
        processor: of the model, where a method reads text.
        text: one text a prompt, where a method reads text; None takes what follows the prompt's last picture.
        capture: run tower, selection, prefill and decoding in `generate` as CUDA graphs, recorded once for prompts of
            one shape (`vscan.capture`); `stats()` says of each prompt whether it was, and if not, why.
        capture_bytes: the most that these may take, caches included; the least recently used leave.
        **fields: the method's hyper-parameters, such as window=6 or important_ratio=0.75.

    Raises:
        ValueError: for a budget, a layer or a model that does not fit, naming what was expected and what came.
        LibraryChanged: if transformers does not do what this version of vscan was tested with (`vscan.compat`).
    """
    config = ReductionConfig(method, visual_tokens, layers or (), positions, fields, average, preset, group, frame_cls)
    return Reducing(model, config, processor, text, capture, capture_bytes)
