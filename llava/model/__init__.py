"""LLaVA in its original checkpoint format."""
