"""What makes a language model a LLaVA: a vision tower, a projector, and images in the prompt."""

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import select_best_resolution
from vscan.checks.guards import check_finite
from vscan.compat import unpad_image
from vscan.masks import placed
from vscan.methods.base import Layout
from vscan.models.encoded import EncodedImages, all_finite
from vscan.models.family import encoded_by, reduce_views
from vscan.models.texts import behind_last, owners, texts_of
from vscan.models.towers import clip_views, grid_of
from vscan.prompt import VisualPrompt

from .multimodal_projector.builder import build_vision_projector


class LlavaMetaModel:
    """The language model's side. Modifications: it holds the projector, the embedding that ends a row of any-resolution
    tiles, and, once loaded, the vision tower."""

    def __init__(self, config):
        super().__init__(config)
        self.mm_projector = build_vision_projector(config)
        if "unpad" in getattr(config, "mm_patch_merge_type", "flat"):
            self.image_newline = nn.Parameter(torch.zeros(config.hidden_size))
        self.vision_tower = None


class LlavaMetaForCausalLM:
    """The shell's side: encode images (stage 1), put them into prompts."""

    @property
    def tokens_per_view(self) -> int:
        """Visual tokens of one crop before any reduction."""
        height, width = grid_of(self.model.vision_tower.vision_tower)
        return height * width

    reduction_family = "llava.model.family:OriginalLlava"

    def encode_images(
        self,
        images: Tensor,
        of_images: list[int] | None = None,
        layouts: list[Layout | None] | None = None,
        texts: list | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode and project images; under a reduction each keeps its budget (`vscan.models.family.reduce_views`).

        Args:
            images: [V, 3, H, W].
            of_images: views of each picture; None: one.
            layouts: how the crops of each lie, where one budget is for all crops of a picture.
            texts: of every view, where the method reads text.

        Returns:
            [V, N, D] in raster order; and which tokens are left, bool [V, N], or None where all are.

        Raises:
            ValueError: for features that are not finite.
        """
        return self.encode_views(images, of_images, layouts, texts)[:2]

    def encode_views(
        self, images: Tensor, of_images: list[int] | None, layouts: list[Layout | None] | None, texts: list | None
    ) -> tuple[Tensor, Tensor | None, list[int] | None]:
        """As `encode_images`, and how many tokens are left of every picture; None where that depends on the picture."""
        tower, project, reduction = self.model.vision_tower, self.model.mm_projector, self.model.reduction
        images = images.to(self.dtype)
        if reduction is None:
            return project(tower(images)), None, None
        counts = [1] * len(images) if of_images is None else of_images

        def encode(pixels: Tensor) -> tuple[list[Tensor], list[int] | None]:
            if not reduction.fitted.reduces_views:
                features = project(tower(pixels))
                return [features, all_finite([features])], None
            given = (reduction, tower.vision_tower, project, pixels, tower.select_layer, counts, layouts)
            batches, finite = clip_views(*given, texts)
            features, kept, numbers = zip(*(reduce_views(reduction.fitted, *batch) for batch in batches), strict=True)
            features, kept = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (features, kept))
            number = None if None in numbers else [each for of_batch in numbers for each in of_batch]
            return [features, finite, kept], number

        reason = layouts and "one budget is shared out among the crops of a picture"
        (features, finite, *kept), number = encoded_by(
            reduction, encode, images, [tower, project], tuple(counts), reason
        )
        check_finite(finite, features.dtype)
        return features, kept[0] if kept else None, number

    @property
    def merge_type(self) -> str:
        """How crops become one image: "flat", "spatial", or "spatial_unpad" (without padding, with newlines)."""
        merge_type = getattr(self.config, "mm_patch_merge_type", "flat")
        reduction = self.model.reduction
        fixed = reduction is not None and reduction.method.anyres_resolution is not None
        return merge_type.removesuffix("_unpad") if fixed else merge_type

    def pack_crops(self, crops: Tensor, image_size: tuple[int, int] | None, newline: Tensor | None) -> Tensor:
        """Put the crops of one image together.

        Args:
            crops: [n, N, D]; the first is the whole image, the others tile it, row by row.
            image_size: (width, height) of the picture; not needed for one crop.
            newline: [D], what ends a row of unpadded tiles.

        Returns:
            [M, D]: the first crop, then the tiles as one grid in raster order, a newline after every row of it.
        """
        if not self.merge_type.startswith("spatial"):
            return crops.flatten(0, 1)
        unpad = "unpad" in self.merge_type
        base, tiles = crops[0], crops[1:]
        if not len(tiles):
            return torch.cat((base, newline[None].to(base))) if unpad else base
        height, width = grid_of(self.model.vision_tower.vision_tower)
        columns = self.tile_columns(len(tiles), image_size)
        grid = tiles.unflatten(0, (-1, columns)).unflatten(2, (height, width))  # rows columns h w D
        grid = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)  # D rows*h columns*w
        if unpad:
            grid = unpad_image(grid, image_size[::-1])
            ends = newline[:, None, None].expand(-1, grid.shape[1], 1)
            grid = torch.cat((grid, ends.to(grid)), dim=2)
        return torch.cat((base, grid.flatten(1).transpose(0, 1)))

    def embed_images(
        self,
        images: Tensor | list[Tensor] | None,
        image_sizes: list[tuple[int, int]] | None = None,
        prompts: list[list[int]] | None = None,
    ) -> EncodedImages | None:
        """Encode images and put the crops of each together; None where there is none.

        Args:
            images: [V, 3, H, W], one view each; or crops [n_i, 3, H, W] of every image.
            image_sizes: (width, height) of every picture, where images come as crops.
            prompts: token ids of the prompts that hold them, where a method reads text.
        """
        if images is None:
            return None
        texts = self.texts_of(prompts, images, [len(crops) if crops.ndim == 4 else 1 for crops in images])
        if isinstance(images, Tensor) and images.ndim == 4:
            return self.embed_views(images, texts)
        views = [len(crops) for crops in images]
        sizes = [None] * len(views) if image_sizes is None else image_sizes
        fitted = None if self.model.reduction is None else self.model.reduction.fitted
        layouts = None
        if fitted is not None and fitted.group == "image":
            layouts = [self.layout(number, size) for number, size in zip(views, sizes, strict=True)]
        encoded, kept, number = self.encode_views(torch.cat(list(images)), views, layouts, texts)

        def packed(crops: Tensor, newline: Tensor | None) -> list[Tensor]:
            pairs = zip(crops.split(views), sizes, strict=True)
            return [self.pack_crops(of_image, size, newline) for of_image, size in pairs]

        features = packed(encoded, getattr(self.model, "image_newline", None))
        num_kept = [len(image) for image in features]
        if kept is not None:
            # Which are left goes the way of the features, as numbers; newlines stay.
            kept = [image[:, 0] > 0 for image in packed(kept.to(encoded.dtype).unsqueeze(-1), encoded.new_ones(1))]
            # How many tokens unpadding cuts away depends on the picture.
            num_kept = None if "unpad" in self.merge_type else number
        return EncodedImages(pooler_output=features, kept=kept, num_views=views, num_kept=num_kept)

    def embed_views(self, images: Tensor, texts: list | None) -> EncodedImages:
        """Encode images [V, 3, H, W] of one view each."""
        encoded, kept, number = self.encode_views(images, None, None, texts)
        return EncodedImages(
            pooler_output=list(encoded),
            kept=None if kept is None else list(kept),
            num_views=[1] * len(images),
            num_kept=[encoded.shape[1]] * len(images) if kept is None else number,
        )

    def texts_of(self, prompts: list[list[int]] | None, images, views: list[int]) -> list | None:
        """The text of every view's prompt, where the method reads text; `views` says how many a picture has."""
        reduction = self.model.reduction
        if reduction is None or reduction.read is None or not reduction.fitted.reduces_views:
            return None
        if prompts is None:
            raise ValueError(f"method {reduction.config.method!r} reads text: expected prompts beside images, got none")
        pictures = owners([row.count(IMAGE_TOKEN_INDEX) for row in prompts], self.placeholders(images))
        of_views = [prompt for prompt, number in zip(pictures, views, strict=True) for _ in range(number)]
        return texts_of(reduction, [behind_last(row, [IMAGE_TOKEN_INDEX]) for row in prompts], of_views)

    def layout(self, num_crops: int, image_size: tuple[int, int] | None) -> Layout | None:
        """How the crops of a picture lie: token numbers, from 1, sent through `pack_crops`; None for one crop."""
        if num_crops == 1:
            return None
        numbers = torch.arange(1.0, num_crops * self.tokens_per_view + 1).view(num_crops, -1, 1)
        seen = torch.zeros(num_crops * self.tokens_per_view + 1, dtype=torch.bool)
        seen[self.pack_crops(numbers, image_size, torch.zeros(1))[:, 0].long()] = True
        columns = self.tile_columns(num_crops - 1, image_size)
        return Layout(((num_crops - 1) // columns, columns), seen[1:].view(num_crops, -1))

    def tile_columns(self, num_tiles: int, image_size: tuple[int, int] | None) -> int:
        """How many tiles lie beside each other."""
        if "unpad" not in self.merge_type:
            return int(num_tiles**0.5)
        side = self.model.vision_tower.vision_tower.config.image_size
        return select_best_resolution(image_size, self.config.image_grid_pinpoints)[0] // side

    def image_length(self, num_crops: int, image_size: tuple[int, int] | None) -> int:
        """Visual tokens of one picture, (width, height), before any reduction."""
        blank = torch.empty(num_crops, self.tokens_per_view, 1)
        return len(self.pack_crops(blank, image_size, torch.empty(1)))

    def placeholders(self, images: Tensor | list[Tensor] | None) -> list[int]:
        """How many placeholders each image takes in a prompt."""
        return [] if images is None else [1] * len(images)

    def placeholders_of(self, encoded: EncodedImages) -> list[int]:
        """The same of images that are encoded."""
        return [1] * len(encoded.pooler_output)

    def embed_prompts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images: Tensor | list[Tensor] | None,
        image_sizes: list[tuple[int, int]] | None = None,
        image_features: EncodedImages | None = None,
    ) -> tuple[Tensor, Tensor | None, VisualPrompt | None]:
        """Put images into prompts.

        Args:
            input_ids: long [B, L]; IMAGE_TOKEN_INDEX stands for one image.
            attention_mask: [B, L], or None where nothing is padding.
            images, image_sizes: as in `embed_images`, in the order in which the prompts name them.
            image_features: in place of images, what `embed_images` gave for them: prompts about one image can share it.

        Returns:
            Embeddings [B, L', D] with M_i columns for image i, their mask [B, L'] or None, and where the images are
            (None for text alone). Rows of unequal length are padded at the left.

        Raises:
            ValueError: if the prompts name another number of images than came.
        """
        rows = input_ids.tolist()
        masks = [[1] * len(row) for row in rows] if attention_mask is None else attention_mask.tolist()
        rows = [[token for token, keep in zip(*pair, strict=True) if keep] for pair in zip(rows, masks, strict=True)]
        named = [row.count(IMAGE_TOKEN_INDEX) for row in rows]
        taken = self.placeholders(images) if image_features is None else self.placeholders_of(image_features)
        num_images = images_of_rows(named, taken)
        encoded = self.embed_images(images, image_sizes, rows) if image_features is None else image_features
        features = [] if encoded is None else encoded.pooler_output
        sizes = iter(
            [len(image) // number for image, number in zip(features, taken, strict=True) for _ in range(number)]
        )
        rows = [
            [out for token in row for out in ([token] * next(sizes) if token == IMAGE_TOKEN_INDEX else [token])]
            for row in rows
        ]
        num_valid = [len(row) for row in rows]
        length = max(num_valid)
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows], device=input_ids.device)
        mask = None
        if min(num_valid) < length:
            mask = [[0] * (length - number) + [1] * number for number in num_valid]
            mask = torch.tensor(mask, device=input_ids.device)

        visual = ids == IMAGE_TOKEN_INDEX
        embeds = self.get_input_embeddings()(ids.clamp(min=0))
        if encoded is None:
            return embeds, mask, None

        def of_rows(numbers: list[int]) -> list[int]:
            numbers = iter(numbers)
            return [sum(next(numbers) for _ in range(number)) for number in num_images]

        prompt = VisualPrompt(
            visual,
            of_rows(encoded.num_views),
            of_rows([len(feature) for feature in features]),
            None if encoded.num_kept is None else of_rows(encoded.num_kept),
            num_valid,
            None if encoded.kept is None else placed(torch.cat(encoded.kept), visual),
            None if encoded.apart is None else placed(torch.cat(encoded.apart), visual),
            None if encoded.num_apart is None else of_rows(encoded.num_apart),
        )
        return embeds.masked_scatter(visual.unsqueeze(-1), torch.cat(features).to(embeds)), mask, prompt


def images_of_rows(named: list[int], taken: list[int]) -> list[int]:
    """How many images belong to each prompt.

    Args:
        named: placeholders of each prompt.
        taken: placeholders that each image takes, in the order in which the prompts name them.

    Raises:
        ValueError: if these are not those of the prompts.
    """
    ends = list(accumulate(taken, initial=0))
    wanted = list(accumulate(named, initial=0))
    if set(wanted) <= set(ends) and wanted[-1] == ends[-1]:
        places = [ends.index(end) for end in wanted]
        return [end - start for start, end in pairwise(places)]
    each = "" if set(taken) <= {1} else f", which take {taken} placeholders"
    raise ValueError(f"expected as many images as the prompts name, {named}, got {len(taken)}{each}")
