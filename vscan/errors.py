"""The error of a library that changed."""

import transformers


class LibraryChanged(RuntimeError):
    """A library does not do what the code relies on, and what was tested.

    Args:
        expected, got: the two sides of what does not fit; both stand in the message, and so does the version.
    """

    def __init__(self, expected: str, got: str):
        super().__init__(expected, got)

    def __str__(self) -> str:
        expected, got = self.args
        return (
            f"expected {expected}, got {got}: transformers {transformers.__version__} does not do what this version "
            "of vscan was tested with, and its answers would be wrong"
        )
