"""Pictures on their way into the lake: read, decoded once, stored once under their hash."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from moon_ops.errors import InputError
from moon_ops.inputs import images
from moon_ops.lake import fetch
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Refusals
from moon_ops.lake.reading import pictures
from moon_ops.lake.schemas import SCHEMAS

COMMIT = 4096  # pictures per commit: bounds memory, and what a killed run has to read again


class Intake:
    """Turns the references in a shop's files (paths in its directory, or addresses) into image ids."""

    def __init__(self, source: Path, lake: Lake, refusals: Refusals, *, now: dt.datetime, workers: int) -> None:
        self.source, self.lake, self.refusals, self.now, self.workers = source.resolve(), lake, refusals, now, workers
        self._ids: dict[str, str] = {}  # reference → image_id
        self.faults: dict[str, str] = {}  # reference → why it was refused
        self.paths: set[Path] = set()  # files in the directory that were looked at

    def store(self, references: Sequence[str]) -> int:
        """Read every referenced picture, commit those the lake does not have, and return how many these were."""
        known: set[str | None] = set(self.lake.read("images", ["image_id"])["image_id"].to_pylist())
        stored = 0
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=len(references), desc="pictures", unit="picture") as bar,
        ):
            for start in range(0, len(references), COMMIT):
                chunk = references[start : start + COMMIT]
                found = [p for p in pool.map(lambda r: self._inspect(r, known), chunk) if p is not None]
                fresh = {p.image_id: p for p in found}
                if fresh:
                    stored += self.lake.append("images", self._rows(list(fresh.values())))
                    known.update(fresh)
                bar.update(len(chunk))
        return stored

    def ids(self, references: Sequence[str], name: str, row: int, column: str) -> list[str]:
        """The image ids of the references in a row of table ``name``; those that could not be read are refused and left out."""
        for reference in references:
            if reference in self.faults:
                self.refusals.add(name, row, column, f"{column} = {reference!r}: {self.faults[reference]}", picture=True)
        return [self._ids[r] for r in references if r in self._ids]

    def _inspect(self, reference: str, known: set[str | None]) -> images.Picture | None:
        """Read one picture; None if it is known already or refused."""
        try:
            content = self._read(reference)
            name = images.image_id(content)
            picture = None if name in known else images.inspect(content, source=reference)
        except InputError as fault:
            self.faults[reference] = fault.problem
            return None
        self._ids[reference] = name
        return picture

    def _read(self, reference: str) -> bytes:
        if fetch.is_address(reference):
            return fetch.fetch(reference, max_bytes=images.MAX_BYTES)
        try:
            path = pictures.place(self.source, reference)
            self.paths |= {path, self.source / reference}
            if not path.is_relative_to(self.source):
                raise InputError(f"{reference} lies outside {self.source}", action="bring pictures inside the directory")
            return _bounded(path)
        except OSError as missing:
            raise InputError(f"{reference} cannot be read ({missing.strerror})", action="add the file") from missing
        except (ValueError, RuntimeError) as odd:  # a zero byte in the name, a link to itself
            raise InputError(f"{reference!r} is no path ({odd})", action="name a file in the directory") from odd

    def _rows(self, found: list[images.Picture]) -> pa.Table:
        rows = [{**vars(picture), "bytes": picture.content, "created": self.now} for picture in found]
        return pa.Table.from_pylist(rows, schema=SCHEMAS["images"])


def _bounded(path: Path) -> bytes:
    """The file's bytes, at most one more than a picture may have, which the decoder then refuses."""
    with path.open("rb") as stream:
        return stream.read(images.MAX_BYTES + 1)
