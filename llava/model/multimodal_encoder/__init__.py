"""Vision towers of the LLaVA family."""
