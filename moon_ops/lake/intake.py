"""Pictures on their way into the lake: read, decoded once, stored once under their hash."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from moon_ops.errors import InputError
from moon_ops.lake import fetch, images
from moon_ops.lake.layout import Refusals
from moon_ops.lake.tables import SCHEMAS, Lake

COMMIT = 4096  # pictures per commit: bounds memory, and what a killed run has to read again


class Intake:
    """Turns the references in a shop's files (paths in its directory, or addresses) into image ids."""

    def __init__(self, source: Path, lake: Lake, refusals: Refusals, *, now: dt.datetime, workers: int) -> None:
        self.source, self.lake, self.refusals, self.now, self.workers = source.resolve(), lake, refusals, now, workers
        self._ids: dict[str, str] = {}  # reference → image_id
        self._faults: dict[str, str] = {}  # reference → why it was refused

    def store(self, references: Sequence[str]) -> int:
        """Read every referenced picture, commit those the lake does not have, and return how many these were."""
        known = set(self.lake.read("images", ["image_id"])["image_id"].to_pylist())
        stored = 0
        with (
            ThreadPoolExecutor(self.workers) as pool,
            tqdm(total=len(references), desc="pictures", unit="picture") as bar,
        ):
            for start in range(0, len(references), COMMIT):
                chunk = references[start : start + COMMIT]
                pictures = [p for p in pool.map(lambda r: self._inspect(r, known), chunk) if p is not None]
                fresh = {p.image_id: p for p in pictures}
                if fresh:
                    stored += self.lake.append("images", self._rows(list(fresh.values())))
                    known.update(fresh)
                bar.update(len(chunk))
        return stored

    def ids(self, references: Sequence[str], source: str, column: str) -> list[str]:
        """The image ids of a row's references; those that could not be read are refused under the row's name and left out."""
        for reference in references:
            if reference in self._faults:
                self.refusals.add(source, {column: reference}, column, f"{column} = {reference!r}: {self._faults[reference]}")
        return [self._ids[r] for r in references if r in self._ids]

    def _inspect(self, reference: str, known: set[str]) -> images.Picture | None:
        """Read one picture; None if it is known already or refused."""
        try:
            content = self._read(reference)
            name = images.image_id(content)
            picture = None if name in known else images.inspect(content, source=reference)
        except InputError as fault:
            self._faults[reference] = fault.problem
            return None
        self._ids[reference] = name
        return picture

    def _read(self, reference: str) -> bytes:
        if fetch.is_address(reference):
            return fetch.fetch(reference, max_bytes=images.MAX_BYTES)
        path = (self.source / reference).resolve()
        if not path.is_relative_to(self.source):
            raise InputError(f"{reference} lies outside {self.source}", action="bring pictures inside the directory")
        try:
            return path.read_bytes()
        except OSError as missing:
            raise InputError(f"{reference} cannot be read ({missing.strerror})", action="add the file") from missing

    def _rows(self, pictures: list[images.Picture]) -> pa.Table:
        columns: dict[str, Iterator[object] | list[object]] = {
            "image_id": [p.image_id for p in pictures],
            "bytes": [p.content for p in pictures],
            "format": [p.format for p in pictures],
            "width": [p.width for p in pictures],
            "height": [p.height for p in pictures],
            "phash": [p.phash for p in pictures],
            "created": [self.now] * len(pictures),
        }
        return pa.table(columns, schema=SCHEMAS["images"])
