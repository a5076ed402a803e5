"""LLaVA on Llama or Vicuna, in the original checkpoint format."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vscan.checks.guards import check_handed_out, generating
from vscan.compat import LlamaPreTrainedModel
from vscan.models.encoded import EncodedImages
from vscan.models.refusals import check_generation
from vscan.prompt import VisualPrompt

from ..llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from ..modeling_llama_x import LlamaModel


class LlavaConfig(LlamaConfig):
    """Llama's config with the `mm_*` keys of the original format."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """The language model with projector and vision tower."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """transformers' LlamaForCausalLM.

    Modifications:
    - the model is a `LlavaLlamaModel`;
    - `forward` and `generate` take `images`, which the prompts name by IMAGE_TOKEN_INDEX.
    """

    config_class = LlavaConfig
    # The tower is loaded on its own: v1.5 checkpoints do not hold it.
    _keys_to_ignore_on_load_unexpected = (r"model\.vision_tower\.",)

    def __init__(self, config: LlavaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list | None = None,
        visual_prompt: VisualPrompt | None = None,
        **kwargs,
    ):
        """One forward pass.

        Args:
            input_ids: long [B, L]; IMAGE_TOKEN_INDEX stands for one image.
            images: [V, 3, H, W], or the crops [n, 3, H, W] of every image, or None.
            image_sizes: width and height of each picture, where images come as crops.
            visual_prompt: what `generate` found out about the prompt; ignored after it.

        Raises:
            ValueError: for labels beside images, which would not line up with the output.
        """
        if images is not None:
            if labels is not None:
                raise ValueError("expected no labels beside images: the output has other columns than the input")
            inputs_embeds, attention_mask, visual_prompt = self.embed_prompts(
                input_ids, attention_mask, images, image_sizes
            )
            input_ids = None
        if inputs_embeds is not None and visual_prompt is not None:
            # Beams and returned sequences repeat the rows after the prompt was embedded.
            kwargs["visual_prompt"] = visual_prompt.repeat(len(inputs_embeds) // len(visual_prompt.visual))
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels, **kwargs
        )
        if "visual_prompt" in kwargs and self.model.reduction is not None:
            check_handed_out(self, kwargs["visual_prompt"], kwargs, output)
        return output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list | None = None,
        attention_mask: Tensor | None = None,
        image_features: EncodedImages | None = None,
        **kwargs,
    ):
        """transformers' generate on prompts with images; returns the new tokens only.

        Args:
            inputs: long [B, L]; IMAGE_TOKEN_INDEX stands for one image.
            images: [V, 3, H, W], or the crops [n, 3, H, W] of every image, or None.
            image_sizes: width and height of each picture, where images come as crops.
            attention_mask: [B, L], or None where nothing is padding.
            image_features: in place of images, what `embed_images` gave for them.
            **kwargs: anything that transformers' generate takes.

        Raises:
            ValueError: for what cannot work while visual tokens are reduced (`vscan.models.refusals.check_generation`).
        """
        makes_cache = self.model.reduction is not None and check_generation(self, kwargs)
        embeds, attention_mask, prompt = self.embed_prompts(inputs, attention_mask, images, image_sizes, image_features)
        with generating(None, self if makes_cache else None, kwargs) as call:
            call.encoded = prompt is not None
            return super().generate(inputs_embeds=embeds, attention_mask=attention_mask, visual_prompt=prompt, **kwargs)
