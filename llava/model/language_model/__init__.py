"""Language models of the LLaVA family."""
