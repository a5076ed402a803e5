"""LLaVA checkpoints in both formats, as `vscan.io.load` finds them."""

from collections.abc import Callable
from math import isqrt
from pathlib import Path

from PIL import Image

from llava.conversation import get_conversation
from llava.model.check import check_checkpoint, check_reduction, tokens_per_image
from llava.model.check_video import is_video
from vscan.config import ReductionConfig
from vscan.io.load import Checkpoint, Loaded, Panel, Sight

USUAL_TOKENS = 576  # of a view, in all published checkpoints


class LlavaCheckpoint(Checkpoint):
    """LLaVA-1.5 and LLaVA-NeXT, in the original format or in Hugging Face's."""

    def _check(self) -> tuple[dict, int | None]:
        config = check_checkpoint(self.folder)
        # A tower that lies on the hub is one of theirs.
        return config, tokens_per_image(config, Path(self.folder)) or USUAL_TOKENS

    @property
    def sees_clips(self) -> bool:
        """Whether it is a Video-LLaVA."""
        return is_video(self.config) or self.config.get("model_type") == "video_llava"

    def check_reduction(self, reduction: ReductionConfig) -> None:
        check_reduction(reduction, self.config, self.folder)

    def check_template(self, conv_mode: str) -> None:
        get_conversation(conv_mode)

    def load(self, device=None, dtype="auto", attn_implementation=None) -> "LoadedLlava":
        from llava.eval.answering import load_checked

        return self.at_hand(*load_checked(self.folder, device, dtype, attn_implementation))

    @staticmethod
    def at_hand(tokenizer, model, image_processor) -> "LoadedLlava":
        model.generation_config.max_length = None  # the checkpoint's own would be warned about at every call
        return LoadedLlava(tokenizer, model, image_processor)


class LoadedLlava(Loaded):
    """A LLaVA with its conversation templates, its crops and its packing."""

    __slots__ = ()

    def preparation(self, images: str | Path | Callable, conv_mode: str, reduction=None):
        from llava.eval.answering import Preparation

        return Preparation.of(self.model, self.tokenizer, self.image_processor, images, conv_mode, reduction)

    def answering(self, reduction=None, **generation):
        from llava.eval.answering import Answering

        return Answering(self.tokenizer, self.model, reduction, **generation)

    def sight(self, prompt, prepare) -> Sight:
        from llava.mm_utils import select_best_resolution

        if prompt.num_frames:
            return self._sight_of_clip(prompt)
        panels = [panel_of(prompt.pixels, self.image_processor)]
        side = prompt.pixels.shape[-1]
        if len(prompt.pixels) > 1:
            width, height = select_best_resolution(prompt.image_size, prepare.image_grid_pinpoints)
            panels.append(panel_of(prompt.pixels, self.image_processor, 1, (height // side, width // side)))
        num_tokens = self._tokens_per_view(side)
        grid = (isqrt(num_tokens),) * 2  # CLIP sees squares
        return Sight(panels, grid, origins(self.model, prompt, num_tokens))

    def _sight_of_clip(self, prompt) -> Sight:
        """The frames of a clip in rows of four; the [CLS] token of each comes from no patch."""
        frames = prompt.pixels.transpose(0, 1)
        num_tokens, tiles = self._tokens_per_view(frames.shape[-1]), (len(frames) // 4, 4)
        starts = range(0, len(frames) * num_tokens, num_tokens)
        places = [place for start in starts for place in (-1, *range(start, start + num_tokens))]
        return Sight([panel_of(frames, self.image_processor, 0, tiles)], (isqrt(num_tokens),) * 2, places)

    def _tokens_per_view(self, side: int) -> int:
        if hasattr(self.model, "tokens_per_view"):
            return self.model.tokens_per_view
        return (side // self.model.config.vision_config.patch_size) ** 2


def panel_of(pixels, image_processor, first: int = 0, tiles: tuple[int, int] = (1, 1)) -> Panel:
    """What the encoder saw, padded or cropped as it was, from pixels [V, 3, H, W] as `image_processor` made them."""
    mean, std = (pixels.new_tensor(getattr(image_processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))
    values = ((pixels[first : first + tiles[0] * tiles[1]] * std + mean) * 255).round().clamp(0, 255).byte()
    joined = values.unflatten(0, tiles).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # H' W' 3
    return Panel(Image.fromarray(joined.numpy()), first, tiles)


def origins(model, prompt, num_tokens: int) -> list[int]:
    """Where each visual token of a prompt comes from, view * num_tokens + token; -1 for a newline."""
    import torch

    from vscan.compat import pack_crops

    # Numbers go the way that features go, through the model's own packing.
    crops = torch.arange(len(prompt.pixels) * num_tokens).view(-1, num_tokens, 1).float()
    newline = torch.tensor([-1.0])
    if hasattr(model, "pack_crops"):
        crops = model.pack_crops(crops, prompt.image_size, newline)
    elif model.config.model_type == "llava_next":
        sizes = torch.tensor([prompt.image_size[::-1]])
        crops = pack_crops(model.base_model, [crops], sizes, newline)[0]
    return crops.flatten().int().tolist()
