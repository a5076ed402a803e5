"""Video-LLaVA on Vicuna, in the original checkpoint format."""

from ..video_llava_arch import VideoLlavaMetaForCausalLM
from .llava_llama import LlavaLlamaForCausalLM


class VideoLlavaLlamaForCausalLM(VideoLlavaMetaForCausalLM, LlavaLlamaForCausalLM):
    """LLaVA on Llama.

    Modifications:
    - `forward` and `generate` take clips [3, T, H, W] in `images` too, with T placeholders each.
    """

    # The towers are loaded on their own, for they may come from folders of their own.
    _keys_to_ignore_on_load_unexpected = (r"model\.image_tower\.", r"model\.video_tower\.")
