"""The LLaVA family in its original checkpoint format.

Contents:
    constants.py     the image placeholder and the special tokens around it
    conversation.py  prompt templates
    tokenizer.py     the sentencepiece tokenizer of the original checkpoints
    mm_utils.py      images in, pixels out; prompts in, token ids out
"""
