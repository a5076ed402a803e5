"""Qwen2.5-VL: checkpoints in their published layout, the classes that reduce them, and the evaluation commands."""
