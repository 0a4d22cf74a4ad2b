"""Which files of a directory hold which table, and what else lies there.

A table is one file (``events.csv``, ``Events.CSV.gz``), a directory of part files as Spark writes (``events.parquet/part-….parquet``,
``events/dt=…/….csv``), or numbered files as BigQuery writes (``events-000000000001.json``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from moon_ops.errors import InputError, counted
from moon_ops.lake.reading.encoding import PACKED

TABLES = ("items", "queries", "events", "users")
KINDS = {
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".csv", ".tsv", ".txt"), "CSV"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "JSON lines"),
}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff")
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz")
STEM = re.compile(rf"({'|'.join(TABLES)})([-_]?\d[\d_-]*(?:of-\d+)?)?")
OURS = ("moon.toml", "readme.md")  # says how the others are to be read; what people write for people
NOTHING = "__HIVE_DEFAULT_PARTITION__"  # a partition without a value
NAMED = 5  # files in one warning


@dataclass(frozen=True)
class Found:
    """The file or the part files of one table; ``label`` is what errors call them."""

    name: str
    label: str
    paths: tuple[Path, ...]
    place: Path  # the shop's directory

    def called(self, path: Path) -> str:
        """The file as reasons name it, e.g. ``events.parquet/part-0.parquet``."""
        return path.relative_to(self.place).as_posix()

    def partition(self, path: Path) -> dict[str, str | None]:
        """The columns that the directories above a part file name, as Hive and Spark write them: ``status=deleted/`` → status."""
        folders = path.relative_to(self.place).parts[1:-1]
        pairs = (folder.split("=", 1) for folder in folders if re.match(r"[^=]+=", folder))
        return {unquote(name): None if value in ("", NOTHING) else unquote(value) for name, value in pairs}


def kind(path: Path) -> str | None:
    """``CSV``, ``JSON lines`` or ``Parquet``, by the file's ending; None for any other."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return KINDS.get(os.path.splitext(name)[1])  # noqa: PTH122 - of a name, not of a path


def hidden(name: str) -> bool:
    """Whether programs write such a file for themselves: ``_SUCCESS``, ``.part-0.crc``, ``Thumbs.db``."""
    return name.startswith((".", "_")) or name.lower() in ("thumbs.db", "desktop.ini")


def find(directory: Path, name: str) -> Found | None:
    """The file or the parts of table ``name``; None if there are none, an :class:`InputError` if it is not clear which of several count."""
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.iterdir()):
        match = STEM.fullmatch(path.name.split(".")[0].lower())
        if hidden(path.name) or match is None or match[1] != name:
            continue
        if path.is_dir():
            if parts := [part for part in under(path) if kind(part)]:
                found[f"{path.name}/"] = parts
        elif kind(path):
            found.setdefault(f"{name}…{''.join(path.suffixes)}" if match[2] else path.name, []).append(path)
    if len(found) > 1:
        raise InputError(
            f"{directory} holds {' and '.join(found)}: it is not clear which one counts; nothing was ingested",
            action="remove all but one",
        )
    return next((Found(name, label, tuple(paths), directory) for label, paths in found.items()), None)


def instead(directory: Path, name: str) -> tuple[str, str]:
    """The file that may have been meant to be table ``name`` and cannot be, and what to do with it; empty texts if none lies there."""
    others = [path for path in sorted(directory.iterdir()) if path.is_file() and not hidden(path.name) and path.name.lower() not in OURS]
    for path in sorted(others, key=lambda path: not path.name.lower().startswith(name)):  # first those that are called so
        ending = path.suffix.lower()
        if ending in SHEETS or ending in ARCHIVES:
            return path.name, f"save it as {name}.csv" if ending in SHEETS else f"unpack it, and call what it holds {name}.csv, for example"
        if kind(path) and STEM.fullmatch(path.name.split(".")[0].lower()) is None:
            return path.name, f"if it holds them, call it {name}{''.join(path.suffixes)}"
    return "", ""


def passed_over(directory: Path, used: Collection[Path]) -> str:
    """What lies in the directory and was not read, in a sentence; an empty text if there is nothing. Hidden files do not count."""
    rest = [path for path in under(directory) if path not in used and path.name.lower() not in OURS]
    pictures = [path for path in rest if path.name.lower().endswith(PICTURES)]
    others = [path.relative_to(directory).as_posix() for path in rest if path not in set(pictures)]
    said = []
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        said.append(f"not read, because no table is called so: {', '.join(others[:NAMED])}{more}")
    if pictures:
        said.append(
            f"{counted(len(pictures), 'picture', 'pictures')} that no row names, e.g. {pictures[0].relative_to(directory).as_posix()}"
        )
    return "; ".join(said)


def under(directory: Path) -> Iterator[Path]:
    """The files under the directory, in order of their names; none that programs write for themselves."""
    for place, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (Path(place) / name for name in sorted(names) if not hidden(name))
