"""The dense model while it reads prompts: what enters its decoder's layers and what leaves them, for hooks.

Prompts are prepared and batched as in every evaluation, and only one token is generated, so that each layer runs once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.answering import Answering, Preparation, Prompt, is_original
from vscan.methods import make_method
from vscan.models.towers import grid_of, run_tower
from vscan.select.attention import cls_row, prompt_rows
from vscan.tools.compare import CONV_MODE

from .measures import attention_distance, patch_distances
from .setting import Setting
from .sweeps import Depths


@dataclass(frozen=True)
class Parts:
    """A LLaVA's tower (CLIPVisionModel) and decoder (LlamaModel)."""

    tower: nn.Module
    decoder: nn.Module

    @classmethod
    def of(cls, model) -> "Parts":
        if is_original(model):
            return cls(model.model.vision_tower.vision_tower, model.model)
        return cls(model.base_model.vision_tower, model.base_model.language_model)


def vscan_of(model):
    """VScan with a model's own hyper-parameters."""
    return make_method("vscan", (getattr(model.config, "reduction", None) or {}).get("vscan", {}))


def vision_layers(model) -> tuple[int, int]:
    """VScan's (local layer, global layer) on a model: its own defaults, else the method's; both 0 or more."""
    method = vscan_of(model)
    number = len(Parts.of(model).tower.encoder.layers)
    return method.local_layer % number, method.global_layer % number


def depths_of(model) -> Depths:
    """What a sweep has to know of a model."""
    parts = Parts.of(model)
    height, width = grid_of(parts.tower)
    return Depths(
        num_layers=len(parts.decoder.layers),
        num_vision_layers=len(parts.tower.encoder.layers),
        num_tokens=height * width,
        global_layer=vision_layers(model)[1],
        prune_layer=vscan_of(model).prune_layer or len(parts.decoder.layers) // 2,
    )


def preparation(setting: Setting) -> Preparation:
    """From a question to a prompt, as `vscan.compare` does it."""
    return Preparation.of(setting.model, setting.tokenizer, setting.image_processor, str(setting.images), CONV_MODE)


@contextmanager
def hooked(layers: Sequence[nn.Module], register: Callable) -> Iterator[None]:
    """Hooks on layers for the length of a with block; `register(index, layer)` gives the handle of one."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(register(index, layer).remove)
        yield


class Reader:
    """Runs the dense model on prompts and returns what its decoder's layers made of the last token.

    Args:
        setting: with the model.
    """

    def __init__(self, setting: Setting):
        setting.model.generation_config.max_length = None  # would be warned about at every call
        options = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": 1}
        self.read = Answering(setting.tokenizer, setting.model, **options)
        self.decoder = Parts.of(setting.model).decoder

    def states(self, prompts: list[Prompt]) -> Tensor:
        """The last token's state after every decoder layer: [layers, B, D], on the CPU."""
        states: dict[int, Tensor] = {}

        def register(index: int, layer: nn.Module):
            def keep(module, args, output: Tensor) -> None:
                states[index] = output[:, -1].cpu()

            return layer.register_forward_hook(keep)

        with hooked(self.decoder.layers, register):
            self.read(prompts)
        return torch.stack([states[index] for index in range(len(self.decoder.layers))])

    def looks(self, prompts: list[Prompt], num_tokens: int) -> Tensor:
        """How much the last token attends to each visual token, mean over heads, in every decoder layer.

        Args:
            prompts: each with one image of `num_tokens` visual tokens.

        Returns:
            fp32 [layers, B, num_tokens], on the CPU; the softmax runs over the whole causal row, text included.
        """
        lengths = [len(prompt.ids) - 1 + num_tokens for prompt in prompts]  # one id stands for the image
        starts = [max(lengths) - n + p.ids.index(IMAGE_TOKEN_INDEX) for n, p in zip(lengths, prompts, strict=True)]
        columns = torch.tensor(starts)[:, None] + torch.arange(num_tokens)
        seen = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]  # padded at the left
        looks: dict[int, Tensor] = {}

        def register(index: int, layer: nn.Module):
            def keep(module, args, kwargs) -> None:
                hidden, rotary = args[0], kwargs["position_embeddings"]
                last = torch.full((len(hidden), 1), hidden.shape[1] - 1, device=hidden.device)
                rows = prompt_rows(layer, hidden, last, rotary, seen.to(hidden.device).unsqueeze(1))
                looks[index] = rows[:, :, 0].mean(dim=1).cpu().gather(1, columns)

            return layer.register_forward_pre_hook(keep, with_kwargs=True)

        with hooked(self.decoder.layers, register):
            self.read(prompts)
        return torch.stack([looks[index] for index in range(len(self.decoder.layers))])


@torch.inference_mode()
def tower_looks(model, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tower's blocks look.

    Args:
        pixels: [V, 3, H, W].

    Returns:
        Attention of [CLS] to the patches, mean over heads, fp32 [blocks, V, N]; and how far patches look, in patches,
        [blocks, V]. Both on the CPU.
    """
    tower = Parts.of(model).tower
    distances = patch_distances(grid_of(tower))
    rows: dict[int, Tensor] = {}
    reach: dict[int, Tensor] = {}

    def register(index: int, layer: nn.Module):
        def keep(module, args) -> None:
            rows[index] = cls_row(layer, args[0]).cpu()
            reach[index] = attention_distance(layer, args[0], distances).cpu()

        return layer.register_forward_pre_hook(keep)

    blocks = tower.encoder.layers
    with hooked(blocks, register):
        run_tower(tower, pixels.to(model.dtype), feature_layer=-1)
    return tuple(torch.stack([of[index] for index in range(len(blocks))]) for of in (rows, reach))


def check_one_view(prepare: Preparation) -> None:
    """Raise ValueError for a model that cuts a picture into crops: its visual tokens are no one grid."""
    if str(prepare.image_aspect_ratio).startswith("anyres"):
        raise ValueError(
            "attention: expected a model whose image is one view (LLaVA-1.5), got one that cuts it into crops"
        )
