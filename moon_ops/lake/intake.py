"""Pictures on their way into the lake: read or fetched, decoded once, stored once under their hash."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from moon_ops.errors import InputError
from moon_ops.inputs import images
from moon_ops.lake import changes, fetch, fetches
from moon_ops.lake.hosts import Hosts
from moon_ops.lake.lake import Lake
from moon_ops.lake.layout import Refusals
from moon_ops.lake.reading import pictures
from moon_ops.lake.schemas import SCHEMAS

if TYPE_CHECKING:
    import lance

HASH = 64  # digits of a picture's name
FEW = 500  # rows of the lake's pictures that are scanned in the time in which one is looked up
COMMIT = 4096  # pictures per commit at most: what a killed run has to read again
COMMIT_BYTES = 64 * 2**20  # and bytes of them: with what Arrow and Lance copy, this is the memory that an ingest needs
AHEAD = 2  # pictures for each worker that may wait to be committed


class Known:
    """The pictures that the lake has: of few references each is looked up; for many all hashes are read, and half of each is kept.
    May be asked by many threads.
    """

    def __init__(self, lake: Lake, references: int) -> None:
        self._images = lake.open("images") if references and lake.exists("images") else None
        self._here: set[str | None] = set()
        self._missing: set[str] = set()
        self._first, self._second = np.zeros(0, np.uint64), np.zeros(0, np.uint64)  # quarters of the hashes, by the first one
        if self._images is not None and references > self._images.count_rows() / FEW:
            self._read(self._images)
            self._images = None

    def _read(self, pictures: lance.LanceDataset) -> None:
        parts = [np.zeros((0, 2), np.uint64)]
        for batch in pictures.to_batches(columns=["image_id"]):
            names = batch["image_id"].to_pylist()
            if (halves := _halves(names)) is None:
                self._here.update(names)
            else:
                parts.append(halves)
        every = np.concatenate(parts)
        order = np.argsort(every[:, 0])
        self._first, self._second = every[order, 0], every[order, 1]

    def __contains__(self, image_id: str | None) -> bool:
        if image_id is None or image_id in self._here:
            return image_id in self._here
        if self._images is not None and image_id not in self._missing:
            found = changes.rows_of(self._images, "image_id", pa.array([image_id]), ["image_id"]).num_rows
            (self._here if found else self._missing).add(image_id)
            return bool(found)
        if (half := _halves([image_id])) is None or not len(self._first):
            return False
        low, high = (int(np.searchsorted(self._first, half[0, 0], side)) for side in ("left", "right"))
        return bool((self._second[low:high] == half[0, 1]).any())

    def add(self, image_ids: Iterable[str]) -> None:
        """Note those that were committed."""
        self._here.update(image_ids)


def _halves(names: Sequence[str]) -> NDArray[np.uint64] | None:
    """The first half of each hash [N, 2]; None where some name is no hash in hexadecimal digits."""
    if any(len(name) != HASH for name in names):
        return None
    try:
        digests = bytes.fromhex("".join(names))
    except ValueError:
        return None
    return np.frombuffer(digests, ">u8").reshape(-1, 4)[:, :2].astype(np.uint64)


class Intake:
    """Turns the references in a shop's files (paths in its directory, or addresses) into image ids; without ``keeps`` no picture is stored,
    and no address is asked: its picture has the address for an id.
    """

    def __init__(self, source: Path, lake: Lake, refusals: Refusals, *, now: dt.datetime, workers: int, keeps: bool = True) -> None:
        self.source, self.lake, self.refusals, self.now, self.workers = source.resolve(), lake, refusals, now, workers
        self.keeps = keeps
        self._ids: dict[str, str] = {}  # reference → image_id
        self._known: Known = Known(lake, 0)  # image ids in the lake
        self._remembered: dict[str, fetches.Fetch] = {}  # by address
        self._noted: dict[str, fetches.Fetch] = {}  # what is new of them and not yet in the lake
        self.faults: dict[str, str] = {}  # reference → why it was refused
        self.paths: set[Path] = set()  # files in the directory that were looked at

    def store(self, references: Sequence[str]) -> int:
        """Read every referenced picture, commit those the lake does not have, and return how many these were."""
        self._known = Known(self.lake, len(references))
        self._remembered = fetches.read(self.lake, [r for r in references if fetch.is_address(r)])
        stored, batch, weight = 0, dict[str, images.Picture](), 0
        with tqdm(total=len(references), desc="pictures", unit="picture", disable=not references) as bar:
            for picture in self._inspected(references):
                bar.update()
                if picture is None or picture.image_id in self._known or picture.image_id in batch:
                    continue
                batch[picture.image_id] = picture
                weight += len(picture.content)
                if len(batch) >= COMMIT or weight >= COMMIT_BYTES:
                    stored += self._commit(batch)
                    batch, weight = {}, 0
        return stored + self._commit(batch)

    def _commit(self, batch: dict[str, images.Picture]) -> int:
        """Pictures first, then where they came from."""
        if not self.keeps:
            self._known.add(batch)
            return 0
        noted = dict(self._noted)  # a worker may add to it meanwhile
        stored = self.lake.append("images", self._rows(list(batch.values()))) if batch else 0
        self._known.add(batch)
        there = {address: note for address, note in noted.items() if note.image_id is None or note.image_id in self._known}
        fetches.write(self.lake, there.values())
        for address in there:
            del self._noted[address]
        return stored

    def _inspected(self, references: Sequence[str]) -> Iterator[images.Picture | None]:
        """Each reference's picture in order, None if it is known already or refused; few are in memory at a time."""
        with ThreadPoolExecutor(self.workers) as pool, Hosts() as hosts:
            waiting: deque[Future[images.Picture | None]] = deque()
            try:
                for reference in references:
                    waiting.append(pool.submit(self._inspect, reference, hosts))
                    if len(waiting) >= AHEAD * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def ids(self, references: Sequence[str], name: str, row: int, column: str) -> list[str]:
        """The image ids of the references in a row of table ``name``; those that could not be read are refused and left out."""
        for reference in references:
            if reference in self.faults:
                number = self.refusals.names_picture(name, row, reference)
                self.refusals.add(name, number, column, f"{column} = {reference!r}: {self.faults[reference]}", picture=True)
        return [self._ids[r] for r in references if r in self._ids]

    def _inspect(self, reference: str, hosts: Hosts) -> images.Picture | None:
        """Read one picture; None if it is known already or refused."""
        if not self.keeps and fetch.is_address(reference):
            self._ids[reference] = reference
            return None
        try:
            return (
                self._fetched(reference, hosts)
                if fetch.is_address(reference)
                else self._described(reference, content_of(self.source, reference, self.paths))
            )
        except InputError as fault:
            self.faults[reference] = fault.problem
            return None

    def _described(self, reference: str, content: bytes) -> images.Picture | None:
        name = images.image_id(content)
        picture = None if name in self._known else images.inspect(content, source=reference)
        self._ids[reference] = name
        return picture

    def _fetched(self, address: str, hosts: Hosts) -> images.Picture | None:
        """What lies at the address: asked for if it is due, and whether it has changed if its picture is in the lake."""
        before = self._remembered.get(address, fetches.Fetch(address))
        if before.waits(self.now):
            problem = f"{before.reason} (asked {before.failed_at:%Y-%m-%d %H:%MZ}, and again after {before.next_try:%Y-%m-%d %H:%MZ})"
            raise InputError(problem, action="wait, or give another address")
        have = before.image_id if before.image_id in self._known else None
        if have and before.is_fresh(self.now):
            self._ids[address] = have
            return None
        try:
            answer = hosts.fetch(address, max_bytes=images.MAX_BYTES, known=before.validators() if have else None)
            if answer.content is None and have is None:
                raise fetch.FetchError(f"{address} answers that nothing has changed, but was asked for all of it", action="tell its owner")
            picture = None if answer.content is None else self._described(address, answer.content)
        except InputError as fault:
            if not isinstance(fault, fetch.FetchError) or fault.asked or fault.retry_after:
                self._noted[address] = before.failed(fault.problem, self.now, getattr(fault, "retry_after", None))
            raise
        self._ids[address] = have if answer.content is None and have else self._ids[address]
        self._noted[address] = before.fetched(answer, self._ids[address], self.now)
        return picture

    def _rows(self, found: list[images.Picture]) -> pa.Table:
        rows = [{**vars(picture), "bytes": picture.content, "created": self.now} for picture in found]
        return pa.Table.from_pylist(rows, schema=SCHEMAS["images"])


def content_of(source: Path, reference: str, looked_at: set[Path]) -> bytes:
    """The bytes of a picture in the directory; :class:`InputError` if there are none. Where it lies is added to ``looked_at``."""
    try:
        path = pictures.place(source, reference)
        looked_at.update((path, source / reference))
        if not path.is_relative_to(source):
            raise InputError(f"{reference} lies outside {source}", action="bring pictures inside the directory")
        return _bounded(path)
    except OSError as missing:
        raise InputError(f"{reference} cannot be read ({missing.strerror})", action="add the file") from missing
    except (ValueError, RuntimeError) as odd:  # a zero byte in the name, a link to itself
        raise InputError(f"{reference!r} is no path ({odd})", action="name a file in the directory") from odd


def _bounded(path: Path) -> bytes:
    """The file's bytes, at most one more than a picture may have, which the decoder then refuses."""
    with path.open("rb") as stream:
        return stream.read(images.MAX_BYTES + 1)
