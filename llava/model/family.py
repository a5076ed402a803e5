"""How a LLaVA in the original format is reduced: it embeds its prompts itself, so that little is left to say here."""

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from vscan.config import ReductionConfig
from vscan.methods.base import Method
from vscan.models.family import Family
from vscan.models.refusals import refuse_copies
from vscan.plan import Fitted
from vscan.prompt import VisualPrompt


class OriginalLlava(Family):
    """LlavaLlamaForCausalLM: LLaVA-1.5, and LLaVA-NeXT, of which every crop is a view."""

    has_frames = False

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.tower = model.model.vision_tower.vision_tower

    def fit(self, config: ReductionConfig, method: Method) -> Fitted:
        return Fitted.of(
            config,
            method,
            num_tokens=self.model.tokens_per_view,
            num_vision_layers=self.tower.config.num_hidden_layers,
            depth=self.model.model.vision_tower.select_layer % (self.tower.config.num_hidden_layers + 1),
            text_config=self.model.config,
            has_frames=self.has_frames,
        )

    def install(self, reduction) -> Callable[[], None]:
        base = self.model.model
        if base.reduction is not None:
            raise ValueError("expected a dense model, got one that is reduced already: remove that reduction first")
        with ExitStack() as undo:
            base.reduction = reduction
            undo.callback(delattr, base, "reduction")
            for part in (self.model, base):
                refuse_copies(undo, part)
            return undo.pop_all().close

    def prompt_of(self, inputs: dict) -> VisualPrompt:
        ids = inputs.get("inputs") if inputs.get("input_ids") is None else inputs["input_ids"]
        given = (inputs.get("attention_mask"), inputs.get("images"), inputs.get("image_sizes"))
        _, _, prompt = self.model.embed_prompts(ids, *given)
        if prompt is None:
            raise ValueError("expected images to plan for, got none")
        return prompt


class OriginalVideoLlava(OriginalLlava):
    """VideoLlavaLlamaForCausalLM: an image is a view, and so is every frame of a clip, beside its [CLS] token."""

    has_frames = True
