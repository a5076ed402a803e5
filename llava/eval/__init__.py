"""Evaluation commands of the LLaVA family."""
