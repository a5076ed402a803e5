"""What is known of a reduced prompt before layer 0: how many visual tokens every stage keeps, and how long every layer
sees each item. Worked out on the host, once a prompt; what runs afterwards is tensors of these lengths."""

from dataclasses import dataclass, replace

from .config import Budget, ReductionConfig, check_arriving, count
from .kept import Planned
from .methods.base import Method, Tower
from .prompt import VisualPrompt


@dataclass(frozen=True)
class Fitted:
    """A reduction as it fits one model: what holds for every prompt.

    Args:
        method: with its hyper-parameters.
        visual_tokens, layers: the budgets, as `ReductionConfig` has them.
        num_tokens: visual tokens of a view; None where views vary in size.
        num_layers: of the decoder.
        compact_positions: whether tokens are numbered anew without gaps.
        rank_with_rotary: whether the decoder's ranking applies the rotary embedding.
        text_config: the decoder's config.
        group: what one budget of the encoder is for, "view" or "image".
        frame_cls: what becomes of the [CLS] token of a frame, "keep" or "drop"; None on a model without frames.
    """

    method: Method
    visual_tokens: Budget | None
    layers: tuple[tuple[int, Budget], ...]
    num_tokens: int | None
    num_layers: int
    compact_positions: bool
    rank_with_rotary: bool
    text_config: object
    group: str = "view"
    frame_cls: str | None = None

    @classmethod
    def of(
        cls,
        config: ReductionConfig,
        method: Method,
        *,
        num_tokens: int | None,
        num_vision_layers: int,
        depth: int | None = None,
        text_config,
        has_cls: bool = True,
        keeps_positions: bool = False,
        rank_with_rotary: bool = True,
        has_frames: bool = False,
    ) -> "Fitted":
        """Check what was asked for against a model.

        Args:
            num_vision_layers: blocks of the vision encoder.
            depth: how many of them lead to the layer that the model reads; None is all.
            has_cls: whether that has a [CLS] token.
            keeps_positions: whether "auto" means original positions on this model, whatever the method says.
            has_frames: whether the frames of clips are views with a [CLS] token each, beside what methods select from.

        Raises:
            ValueError: for a layer that the model does not have, a count above what arrives there, or a method that
                the vision encoder does not fit.
            Unreachable: for an average that no budgets give.
        """
        num_layers = text_config.num_hidden_layers
        config = scheduled(config, method, num_layers, num_tokens)
        for layer, _ in config.layers:
            if layer >= num_layers:
                raise ValueError(f"layers: expected decoder layers 0 to {num_layers - 1}, got {layer}")
            if layer < method.needs.back:
                raise ValueError(f"layers: expected decoder layers from {method.needs.back} on, got {layer}")
        check_arriving(config, num_tokens, text_config.max_position_embeddings)
        auto = method.positions == "compact" and not keeps_positions
        fitted = cls(
            method=method,
            visual_tokens=config.visual_tokens,
            layers=config.layers,
            num_tokens=num_tokens,
            num_layers=num_layers,
            compact_positions={"auto": auto, "compact": True, "original": False}[config.positions],
            rank_with_rotary=rank_with_rotary if method.with_rotary is None else method.with_rotary,
            text_config=text_config,
            group=config.group or method.needs.group,
            frame_cls=(config.frame_cls or "keep") if has_frames else None,
        )
        of_clips = has_frames and type(method).encode is not Method.encode and not method.needs.keys
        of_clips = of_clips and type(method).block is Method.block
        if fitted.group == "image" != method.needs.group and not of_clips:
            raise ValueError(f"group: expected 'view' or None for {config.method!r}, got 'image'")
        if config.frame_cls is not None and not has_frames:
            raise ValueError(
                f"frame_cls: expected None, for views of this model have no [CLS] token, got {config.frame_cls}"
            )
        if fitted.reduces_views:
            if type(method).encode is Method.encode:
                got = f"{config.method!r} reduces nothing after the vision encoder, got {config.visual_tokens}"
                raise ValueError(f"visual_tokens: expected None, for {got}")
            if method.needs.cls and not has_cls:
                raise ValueError(
                    f"method {config.method!r}: expected a vision encoder with a [CLS] token, got one without"
                )
            method.check(Tower(num_vision_layers, depth or num_vision_layers, num_tokens, fitted.num_kept))
        return fitted

    @property
    def num_kept(self) -> int | None:
        """Tokens left of a view after the vision encoder; None where views vary in size."""
        return None if self.num_tokens is None else count(self.num_tokens, self.visual_tokens)

    @property
    def reduces_frames(self) -> bool:
        """Whether anything of a clip is dropped after the vision encoder."""
        return self.reduces_views or self.frame_cls == "drop"

    @property
    def reduces_views(self) -> bool:
        """Whether anything is dropped after the vision encoder."""
        if self.num_tokens is None:
            return self.visual_tokens is not None and not (
                isinstance(self.visual_tokens, float) and self.visual_tokens == 1
            )
        return self.num_kept < self.num_tokens


def scheduled(config: ReductionConfig, method: Method, num_layers: int, num_tokens: int | None) -> ReductionConfig:
    """The same reduction with the budgets that its average or its preset stands for.

    Raises:
        ValueError: for a preset that the method does not have.
        Unreachable: for an average that no budgets give.
    """
    if isinstance(config.average, int) and num_tokens is not None and config.average > num_tokens:
        raise ValueError(f"average: expected at most the {num_tokens} visual tokens of a view, got {config.average}")
    if config.preset is not None:
        if config.preset not in method.presets:
            names = ", ".join(method.presets) or "none"
            raise ValueError(f"preset: expected one of those of {config.method!r} ({names}), got {config.preset!r}")
        schedule = method.presets[config.preset]
    elif config.average is not None:
        if isinstance(config.average, int) and num_tokens is None:
            raise ValueError(f"average: expected a share such as 0.111, for images vary in size, got {config.average}")
        if type(method).encode is Method.encode and type(method).schedule is Method.schedule:
            raise ValueError(f"average: expected a method with a schedule of its own, got {config.method!r} without")
        schedule = method.schedule(config.average, num_layers, num_tokens)
    else:
        return config
    return replace(
        config, average=None, preset=None, visual_tokens=schedule.visual_tokens, layers=tuple(schedule.layers.items())
    )


@dataclass(frozen=True)
class Plan:
    """What becomes of a prompt.

    Args:
        length: columns of the whole prompt.
        stages: from layer 0 up; of two with the same start the later one counts.
        num_layers: of the decoder.
    """

    length: int
    stages: list[Planned]
    num_layers: int

    @classmethod
    def of(cls, fitted: Fitted, prompt: VisualPrompt) -> "Plan":
        """Work out a prompt; reads the device only where it depends on the picture how many tokens the encoder left."""
        length = prompt.visual.shape[1]
        visual = prompt.num_visual
        if prompt.kept is not None:
            visual = prompt.kept.sum(dim=1).tolist() if prompt.num_kept is None else prompt.num_kept
        valid = [v - dense + left for v, dense, left in zip(prompt.num_valid, prompt.num_visual, visual, strict=True)]
        stages = [Planned(0, visual, valid, length if visual == prompt.num_visual else max(valid))]
        apart = prompt.num_apart or [0] * len(visual)
        for start, budget in fitted.layers:
            before, ranks_cls = stages[-1], fitted.method.ranks_cls
            # Papers count no [CLS] tokens of frames, also where these compete: a budget of all others is one of all.
            counted = [v - extra for v, extra in zip(before.num_visual, apart, strict=True)]
            num = [count(v, budget, views) for v, views in zip(counted, prompt.num_views, strict=True)]
            is_all = [asked == v for asked, v in zip(num, counted, strict=True)]
            if all(is_all):
                stages.append(before._replace(start=start, num=None))
                continue
            competing = before.num_visual if ranks_cls else counted
            num = [v if whole else asked for v, whole, asked in zip(competing, is_all, num, strict=True)]
            left = [
                arriving if asked == arriving else fitted.method.leaves(asked, arriving)
                for asked, arriving in zip(num, competing, strict=True)
            ]
            visual = [v - c + stay for v, c, stay in zip(before.num_visual, competing, left, strict=True)]
            valid = [v - a + stay for v, a, stay in zip(before.num_valid, before.num_visual, visual, strict=True)]
            stages.append(Planned(start, visual, valid, max(valid), num, competing))
            if ranks_cls:  # what is left of them is not known, and is counted from here on
                apart = [extra if whole else 0 for extra, whole in zip(apart, is_all, strict=True)]
        return cls(length, stages, fitted.num_layers)

    @property
    def of_layers(self) -> list[Planned]:
        """The stage that each decoder layer belongs to."""
        by_start, found = {stage.start: stage for stage in self.stages}, []
        for layer in range(self.num_layers):
            found.append(by_start.get(layer, found[-1] if found else None))
        return found
