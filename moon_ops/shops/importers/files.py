"""The files of a downloaded data set: what they are called in SQL, what must be in them, and how a fault of theirs is told."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from moon_ops.errors import InputError

UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException, duckdb.ConversionException, duckdb.SerializationException)


def literal(path: Path) -> str:
    """The path as a text of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def names(paths: Sequence[Path]) -> str:
    """The paths as a list of SQL that a reader takes for these very files, whatever characters their names hold."""
    plain = {ord(sign): f"[{sign}]" for sign in "[*?"}
    return "[" + ", ".join(literal(Path(str(path).translate(plain))) for path in paths) + "]"


def require(path: Path, names: Iterable[str], has: Iterable[str]) -> None:
    """:class:`InputError` naming the first of ``names`` that the file at ``path`` does not have."""
    found = list(has)
    for name in names:
        if name not in found:
            raise InputError(
                f"{path} has no column '{name}' (it has {', '.join(found) or 'none'}); nothing was imported",
                action="bring the file as it is published",
            )


def parquet_columns(paths: Sequence[Path], names: Iterable[str]) -> None:
    """Check that every file is Parquet and has the columns ``names``."""
    wanted = list(names)
    for path in paths:
        try:
            has = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as broken:
            raise unreadable(path, broken) from broken
        require(path, wanted, has)


def csv_columns(path: Path, names: Iterable[str]) -> None:
    """Check that the CSV file's first line names the columns ``names``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            has = next(csv.reader(lines), [])
    except (OSError, UnicodeDecodeError, csv.Error) as broken:
        raise unreadable(path, broken) from broken
    require(path, names, has)


def absent(source: Path, what: str) -> InputError:
    """The error for a part of the data set, ``what``, that the directory ``source`` does not hold."""
    return InputError(f"SOURCE = {source} holds no {what}; nothing was imported", action="download it, or name the directory that holds it")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the database says of a file into an :class:`~moon_ops.errors.InputError` that names the file."""
    try:
        yield
    except UNREADABLE as broken:
        raise unreadable(path, broken) from broken


def unreadable(path: Path, fault: Exception) -> InputError:
    """The error for a file or a directory that cannot be read, with the first lines of why."""
    why = "; ".join(line.strip() for line in str(fault).splitlines()[:3])
    return InputError(f"{path} cannot be read ({why}); nothing was imported", action="download it again")
