"""Evaluation commands of Qwen2.5-VL."""
