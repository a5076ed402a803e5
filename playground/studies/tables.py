"""Tables as files: Markdown to read, CSV with all digits."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Value = str | float | None


def shown(value: Value, digits: int = 1) -> str:
    """A value as it stands in Markdown; nothing for what is not known."""
    if value is None or isinstance(value, str):
        return value or ""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float | None, half_width: float | None) -> str:
    """Such as "-1.5 [-3.0, +0.0]"; the value alone where its interval is not known."""
    if value is None:
        return ""
    if half_width is None or math.isnan(half_width):
        return f"{value:+.1f}"
    return f"{value:+.1f} [{value - half_width:+.1f}, {value + half_width:+.1f}]"


def ends(value: float | None, half_width: float | None) -> list[float | None]:
    """A value with the ends of its interval."""
    known = value is not None and not math.isnan(half_width)
    return [value, value - half_width, value + half_width] if known else [value, None, None]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in columns of even width, the first one left, the others right."""
    header, *lines = ([text.replace("|", r"\|") for text in line] for line in [header, *lines])
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(
        "| " + " | ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(pairs)) + " |\n"
        for pairs in (list(zip(line, widths, strict=True)) for line in [header, rule, *lines])
    )


def write_csv(file: Path, header: Sequence[str], lines: Sequence[Sequence[Value]]) -> None:
    """All digits; what is not known is an empty field."""
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for line in lines:
            writer.writerow([None if isinstance(v, float) and math.isnan(v) else v for v in line])
