"""A file that has been read: its rows, those that could not be read, and what was recognised of how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

ROW = "_row"  # the row's number in its file, from 1


Held: TypeAlias = "Callable[[], Iterator[pa.Table]]"  # reads the rows, some at a time
Keep: TypeAlias = "Callable[[Iterable[pa.Table]], tuple[pa.Table, Held]]"  # keeps rows elsewhere: a table without rows, and where they are


class WholeError(Exception):
    """A file that has to be read whole to be understood."""


@dataclass(frozen=True)
class Refused:
    """A row that could not be read: its number, what of it is legible, the column if one is to blame, and why."""

    number: int
    row: dict[str, Any]
    column: str
    reason: str


@dataclass
class Part:
    """One file: ``rows`` it has in all, of which ``table`` holds the good ones and ``refused`` the others."""

    label: str
    path: Path
    how: str  # e.g. "CSV, comma between cells, UTF-8"
    rows: int = 0
    table: pa.Table = field(default_factory=lambda: pa.table({}))
    refused: list[Refused] = field(default_factory=list)
    held: Held | None = None  # where its rows are, if it is too long: ``table`` has none of them then
    halves: int = 0  # rows refused for half a character
    notes: list[str] = field(default_factory=list)

    def refuse_half(self, number: int, row: dict[str, Any]) -> None:
        """Refuse a row for a character that is no whole one; the column is named, and the row kept as far as it can be read."""
        bad = next((name for name, cell in row.items() if not _legible(cell)), "")
        shown = {_shown(name): _shown(cell) for name, cell in row.items()}
        why = f"{bad} = {shown.get(_shown(bad))!r} holds half a character"
        self.refused.append(Refused(number, shown, bad, f"{why} (if the file is no UTF-8, name its encoding)"))
        self.halves += 1


def _legible(cell: Any) -> bool:
    try:
        repr(cell).encode() if isinstance(cell, (dict, list)) else str(cell).encode()
    except UnicodeEncodeError:
        return False
    return not isinstance(cell, (dict, list)) or "\\ud" not in repr(cell)


def _shown(cell: Any) -> Any:
    """A cell with a question mark in a box for what is no character."""
    if isinstance(cell, str):
        return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= sign <= "\udfff" else sign for sign in cell)
    if isinstance(cell, list):
        return [_shown(part) for part in cell]
    return {_shown(name): _shown(part) for name, part in cell.items()} if isinstance(cell, dict) else cell
