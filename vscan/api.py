"""`reduce(model, ...)` for a with block, `apply(model, ...)` for a handle: what a user calls."""

from collections.abc import Callable

from torch import Tensor, nn

from .cache import Force, PromptState
from .compat import check
from .config import Budget, ReductionConfig, check_arriving, count
from .methods import make_method
from .models import defaults, installer, unwrapped
from .stats import Stats, collect


class Reduction:
    """A reduction in force on one model: what was asked for, how it fits that model, and what the last prompt became.

    Args:
        config: what was asked for.
        defaults: the model's own hyper-parameters of that method (from its config), below those in `config`.

    Raises:
        ValueError: if the method has no such hyper-parameter, or a value is none.
    """

    def __init__(self, config: ReductionConfig, defaults: dict | None = None):
        self.config = config
        self.method = make_method(config.method, {**(defaults or {}), **config.fields})
        self.last: PromptState | None = None
        self.force = Force()
        self._undo: Callable[[], None] | None = None

    def fit(
        self,
        num_tokens: int | None,
        num_vision_layers: int,
        num_decoder_layers: int,
        compact_positions: bool,
        text_config,
        rank_with_rotary: bool = True,
    ) -> None:
        """Called by the model's adapter: check the reduction against the model and settle what depends on it.

        Args:
            num_tokens: visual tokens of a view; None where views vary in size.
            num_vision_layers, num_decoder_layers: depth of the vision encoder and of the decoder.
            compact_positions: what positions="auto" means on this model.
            text_config: the decoder's config, for FLOPs.
            rank_with_rotary: whether the decoder's ranking applies the rotary embedding.

        Raises:
            ValueError: for a layer that the model does not have, or a count above what arrives there.
        """
        for layer, _ in self.config.layers:
            if layer >= num_decoder_layers:
                raise ValueError(f"layers: expected decoder layers 0 to {num_decoder_layers - 1}, got {layer}")
        check_arriving(self.config, num_tokens, text_config.max_position_embeddings)
        budget = self.config.visual_tokens
        self.num_tokens = num_tokens
        self.num_kept = None if num_tokens is None else count(num_tokens, budget)
        if num_tokens is None:
            self.reduces_views = budget is not None and not (isinstance(budget, float) and budget == 1)
        else:
            self.reduces_views = self.num_kept < num_tokens
        if self.reduces_views:
            self.method.check(num_vision_layers)
        self.compact_positions = {"auto": compact_positions, "compact": True, "original": False}[self.config.positions]
        self.text_config = text_config
        self.rank_with_rotary = rank_with_rotary

    def kept(self, stage: int = -1) -> Tensor:
        """Which columns of the last prompt a stage left.

        Args:
            stage: 0 is what the decoder's layer 0 saw, 1 what the first pruning left, -1 what came out of the model.

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
            self.force.ended = "whose reduction was removed"

    def _last(self) -> PromptState:
        if self.last is None:
            raise RuntimeError("expected a prompt with images to have run last under this reduction, none has")
        return self.last


def apply(
    model: nn.Module,
    method: str = "vscan",
    visual_tokens: Budget | None = None,
    layers=None,
    positions: str = "auto",
    **fields,
) -> Reduction:
    """Reduce the visual tokens of a model until the returned handle's `remove()` is called.

    Args:
        model: a stock transformers model (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration,
            Qwen2_5_VLForConditionalGeneration) or one loaded by `llava.model.builder`.
        method: a name in `vscan.METHODS`.
        visual_tokens: tokens kept per image after the vision encoder: a count, or a share in (0, 1]; None keeps all.
        layers: {decoder layer: budget}: before that layer visual tokens are pruned to the budget; a count is per
            image, a share is of the tokens that are left.
        positions: "auto", "compact" or "original".
        **fields: the method's hyper-parameters, such as window=6 or important_ratio=0.75.

    Raises:
        ValueError: for a budget, a layer or a model that does not fit, naming what was expected and what came.
        LibraryChanged: if transformers does not do what this version of vscan was tested with (`vscan.compat`).
    """
    return apply_config(model, ReductionConfig(method, visual_tokens, layers or (), positions, fields))


def apply_config(model: nn.Module, config: ReductionConfig) -> Reduction:
    """`apply` for a configuration that is at hand."""
    model = unwrapped(model)
    install = installer(model)
    of_checkpoint = (getattr(model.config, "reduction", None) or {}).get(config.method)
    reduction = Reduction(config, {**defaults(model, config.method), **(of_checkpoint or {})})
    check(model)
    reduction._undo = install(reduction)
    return reduction


class Reducing:
    """`apply` for the length of a with block; may be entered again."""

    def __init__(self, model: nn.Module, config: ReductionConfig):
        self.model, self.config, self.reductions = model, config, []

    def __enter__(self) -> Reduction:
        self.reductions.append(apply_config(self.model, self.config))
        return self.reductions[-1]

    def __exit__(self, *error) -> None:
        self.reductions.pop().remove()


def reduce(
    model: nn.Module,
    method: str = "vscan",
    visual_tokens: Budget | None = None,
    layers=None,
    positions: str = "auto",
    **fields,
) -> Reducing:
    """`apply` for the length of a with block; the arguments are the same.

    While it is in force, every thread that runs this model gets it reduced. A cache that it has filled is refused
    afterwards, and the model cannot be copied or pickled meanwhile.
    """
    return Reducing(model, ReductionConfig(method, visual_tokens, layers or (), positions, fields))
