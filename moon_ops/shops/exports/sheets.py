"""The rows of an export, whatever its dialect and encoding: each with the place where it stands, and the cells that hold something."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from moon_ops.lake.meanings import Meanings
from moon_ops.lake.reading import content, missing
from moon_ops.lake.reading.delimited import bare
from moon_ops.lake.reading.files import Found
from moon_ops.lake.reading.parts import ROW


@dataclass(frozen=True)
class Line:
    """A row: its place, e.g. ``products.csv:7``, and its cells by the names of :func:`called`; none is empty."""

    place: str
    cells: dict[str, str]

    def get(self, *names: str) -> str:
        """The first of the cells that holds something; an empty text if none does."""
        return next((self.cells[name] for name in names if name in self.cells), "")


@dataclass
class Sheet:
    """A file of an export. ``columns`` has each column's name as the file writes it; ``refused`` the rows that cannot be read, and why."""

    label: str
    columns: dict[str, str]
    lines: list[Line]
    refused: list[tuple[Line, str]] = field(default_factory=list)
    how: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return len(self.lines) + len(self.refused)


def called(name: str) -> str:
    """A column's name as the importers know it: small letters, ``_`` for spaces and hyphens, without the feeds' ``g:``."""
    return bare(name).removeprefix("g:")


def read(path: Path, root: Path, names: Collection[str], words: Meanings) -> Sheet:
    """A CSV file under ``root``; ``names`` are the columns that may occur, which tell its delimiter.

    Raises :class:`~moon_ops.errors.InputError` for a file that cannot be read to its end, and for a column that is there twice.
    """
    found = Found("items", path.relative_to(root).as_posix(), (path,), root)
    asread = content.read(found, (), names, given=words.encoding, renamed=words.columns)
    table = missing.emptied(asread.table)
    columns = {called(name): name for name in table.column_names if name != ROW}
    lines = [
        Line(asread.place(row.pop(ROW)), {called(name): str(cell).strip() for name, cell in row.items() if str(cell or "").strip()})
        for row in table.to_pylist()
    ]
    refused = [(Line(asread.place(one.number), {called(n): str(c) for n, c in one.row.items() if c}), one.reason) for one in asread.refused]
    return Sheet(found.label, columns, lines, refused, ", ".join(asread.said), asread.notes)
