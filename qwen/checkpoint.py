"""Qwen2.5-VL checkpoints, as `vscan.io.load` finds them."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from qwen.images import pixel_budget
from qwen.model.check import check_checkpoint
from vscan.config import ReductionConfig
from vscan.io.checkpoint import check_layers, load_checked
from vscan.io.images import ImageFolder
from vscan.io.load import Checkpoint, Loaded, Panel, Sight

COMMAND = "model_vqa_loader"  # whose pixel budget is taken


class QwenCheckpoint(Checkpoint):
    """Qwen2.5-VL, whose pictures have as many tokens as their size asks for."""

    def _check(self) -> tuple[dict, int | None]:
        return check_checkpoint(self.folder), None

    def check_reduction(self, reduction: ReductionConfig) -> None:
        check_layers(reduction, self.config)

    def check_template(self, conv_mode: str) -> None:
        """Its template is in the checkpoint."""

    def load(self, device=None, dtype="auto", attn_implementation=None) -> "LoadedQwen":
        from qwen.model.builder import load_pretrained_model

        options = {"dtype": dtype, "attn_implementation": attn_implementation}
        return self.at_hand(*load_checked(load_pretrained_model, self.folder, device, **options))

    @staticmethod
    def at_hand(tokenizer, model, image_processor) -> "LoadedQwen":
        return LoadedQwen(tokenizer, model, image_processor)


class LoadedQwen(Loaded):
    """A Qwen2.5-VL with its template, and pictures of any size."""

    __slots__ = ()

    def preparation(self, images: str | Path | Callable, conv_mode: str, reduction=None):
        find_image = images if callable(images) else ImageFolder(str(images))
        return self.prepared_within(pixel_budget(COMMAND, self.model.name_or_path, None, None), find_image)

    def prepared_within(self, budget: tuple[int, int], find_image: Callable):
        """`preparation` for another range of pixels of a picture."""
        from qwen.eval.answering import Preparation

        return Preparation(self.tokenizer, self.image_processor, self.model.config.image_token_id, find_image, budget)

    def answering(self, reduction=None, **generation):
        from qwen.eval.answering import Answering

        return Answering(self.tokenizer, self.model, reduction, **generation)

    def sight(self, prompt, prepare) -> Sight:
        image = picture_of(prompt.pixels, prompt.grid, self.image_processor)
        side = self.image_processor.merge_size
        _, rows, columns = prompt.grid[0].tolist()
        return Sight([Panel(image)], (rows // side, columns // side), list(range(prompt.visual_tokens)))


def picture_of(pixels, grid, image_processor) -> Image.Image:
    """What the encoder saw of a picture, from its patches [n, 3 * 2 * P * P] as `image_processor` made them.

    Patches lie merge group by merge group, each group's row by row; a picture fills both steps of a patch alike.

    Args:
        pixels, grid: as `qwen.images.process_image` gives them.
    """
    _, rows, columns = grid[0].tolist()
    side, patch = image_processor.merge_size, image_processor.patch_size
    patches = pixels.view(rows // side, columns // side, side, side, 3, -1, patch, patch)[..., 0, :, :]
    values = patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
    mean, std = (values.new_tensor(getattr(image_processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))
    bytes_ = ((values * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())
