"""What makes a language model a LLaVA: a vision tower, a projector, and images in the prompt."""

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import expand_image_tokens
from vscan.models.clip import encode_views, grid_of
from vscan.prompt import VisualPrompt

from .multimodal_projector.builder import build_vision_projector


class LlavaMetaModel:
    """The language model's side. Modifications: it holds the projector and, once loaded, the vision tower."""

    def __init__(self, config):
        super().__init__(config)
        self.mm_projector = build_vision_projector(config)
        self.vision_tower = None


class LlavaMetaForCausalLM:
    """The shell's side: encode images (stage 1), put them into prompts."""

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image before any reduction."""
        height, width = grid_of(self.model.vision_tower.vision_tower)
        return height * width

    def install_reduction(self, reduction):
        """Put a `vscan.Reduction` in force; returns the function that undoes it.

        Raises:
            ValueError: if one is in force already, or if it does not fit this model.
        """
        if self.model.reduction is not None:
            raise ValueError("expected a dense model, got one that is reduced already: remove that reduction first")
        reduction.fit(
            num_tokens=self.tokens_per_image,
            num_vision_layers=self.model.vision_tower.vision_tower.config.num_hidden_layers,
            num_decoder_layers=self.config.num_hidden_layers,
            compact_positions=True,
            text_config=self.config,
            dtype=self.dtype,
        )
        self.model.reduction = reduction
        return lambda: setattr(self.model, "reduction", None)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode and project images; under a reduction each keeps its budget (`vscan.models.clip.encode_views`).

        Args:
            images: [V, 3, H, W].

        Returns:
            [V, N, D] in raster order; placeholders whose token was dropped hold NaN.
        """
        tower, project, reduction = self.model.vision_tower, self.model.mm_projector, self.model.reduction
        images = images.to(self.dtype)
        if reduction is None or reduction.num_kept == reduction.num_tokens:
            return project(tower(images))
        return encode_views(reduction, tower.vision_tower, project, images, tower.select_layer)

    def embed_prompts(
        self, input_ids: Tensor, attention_mask: Tensor | None, images: Tensor | None
    ) -> tuple[Tensor, Tensor | None, VisualPrompt | None]:
        """Put images into prompts.

        Args:
            input_ids: long [B, L]; IMAGE_TOKEN_INDEX stands for one image.
            attention_mask: [B, L], or None where nothing is padding.
            images: [V, 3, H, W], in the order in which the prompts name them, or None.

        Returns:
            Embeddings [B, L', D] with N columns per image, their mask [B, L'] or None, and where the images are
            (None for text alone). Rows of unequal length are padded at the left.

        Raises:
            ValueError: if the prompts name another number of images than came.
        """
        rows = input_ids.tolist()
        masks = [[1] * len(row) for row in rows] if attention_mask is None else attention_mask.tolist()
        num_images = [row.count(IMAGE_TOKEN_INDEX) for row in rows]
        if sum(num_images) != (0 if images is None else len(images)):
            raise ValueError(
                f"expected {num_images} images for the prompts, got {0 if images is None else len(images)}"
            )
        size = self.tokens_per_image
        rows = [[token for token, keep in zip(*pair, strict=True) if keep] for pair in zip(rows, masks, strict=True)]
        rows = [expand_image_tokens(row, IMAGE_TOKEN_INDEX, size) for row in rows]
        num_valid = [len(row) for row in rows]
        length = max(num_valid)
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows], device=input_ids.device)
        mask = None
        if min(num_valid) < length:
            mask = [[0] * (length - number) + [1] * number for number in num_valid]
            mask = torch.tensor(mask, device=input_ids.device)

        visual = ids == IMAGE_TOKEN_INDEX
        embeds = self.get_input_embeddings()(ids.clamp(min=0))
        if images is None:
            return embeds, mask, None
        features = self.encode_images(images).to(embeds.device, embeds.dtype)
        reduction = self.model.reduction
        prompt = VisualPrompt(
            visual=visual,
            num_views=num_images,
            num_visual=[number * size for number in num_images],
            num_kept=[number * (size if reduction is None else reduction.num_kept) for number in num_images],
            num_valid=num_valid,
        )
        return embeds.masked_scatter(visual.unsqueeze(-1), features), mask, prompt
