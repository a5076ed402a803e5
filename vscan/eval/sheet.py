"""xlsx files of words: what looks like a formula or an error, such as "=A" or "#N/A", is an answer like others."""

from io import BytesIO
from pathlib import Path

from .records import write_whole


def read_sheet(file: str | Path) -> list[dict[str, str]]:
    """Read the first sheet of an xlsx file; cells are strings, an empty one is "".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is none, or is damaged.
    """
    from openpyxl import load_workbook  # only here is it needed

    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a file at {str(file)!r}, found none")
    try:
        book = load_workbook(BytesIO(Path(file).read_bytes()), read_only=True)
        lines = [["" if cell is None else str(cell) for cell in line] for line in book.worksheets[0].values]
    except Exception as error:  # zipfile's, openpyxl's or XML's own
        reason = str(error) or type(error).__name__
        raise ValueError(f"{file}: expected an xlsx file with a sheet, got {reason}") from error
    header, *rows = lines or [[]]
    empty = dict.fromkeys(header, "")
    return [{**empty, **dict(zip(header, row, strict=False))} for row in rows if any(row)]


def write_sheet(file: str | Path, lines: list[list[str | int | None]]) -> None:
    """Write an xlsx file of one sheet, whole or not at all; its folder is made. Control characters, which such a file
    cannot hold, are left out."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def as_cell(value):
        if not isinstance(value, str):
            return value
        cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        cell.data_type = "s"
        return cell

    for line in lines:
        sheet.append([as_cell(value) for value in line])
    content = BytesIO()
    book.save(content)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), content.getvalue())
