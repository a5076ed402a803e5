"""Names and numbers that the original LLaVA checkpoints were trained with."""

IMAGE_TOKEN_INDEX = -200  # stands for an image among token ids; no vocabulary has it
IGNORE_INDEX = -100  # the label that torch's cross entropy leaves out

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_VIDEO_TOKEN = "<video>"  # of converted checkpoints: the original has an image placeholder for every frame
DEFAULT_PAD_TOKEN = "<pad>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
