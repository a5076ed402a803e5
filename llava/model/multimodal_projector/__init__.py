"""Projectors from the vision tower to the language model."""
