"""Where the encoded bytes of training pictures lie in the lake: by number of the row, found once, and read by whoever needs them.

P pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from moon_ops.encoder import duplicates
from moon_ops.encoder.answering import Reader
from moon_ops.encoder.samples import Firsts, Samples, some_at_a_time
from moon_ops.errors import StageError
from moon_ops.inputs.contract import Sample
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import bytes_at, image_bytes

if TYPE_CHECKING:
    import lance

KEY, PLACE, OFFSET = slice(0, 2), 2, 3  # rows of the table of pictures
ABSENT = -1


def keys(image_ids: Sequence[str]) -> NDArray[np.int64]:
    """Two numbers [N, 2] that stand for each id: 16 bytes of a hash, where a text takes 113."""
    hashed = hashlib.blake2b
    parts = [b"".join([hashed(name.encode(), digest_size=16).digest() for name in some]) for some in some_at_a_time(image_ids)]
    return np.frombuffer(b"".join(parts), np.int64).reshape(-1, 2)


class Pictures:
    """The P pictures of a training: ids as hashes, sorted, with the place of each among those asked for and its row in the lake.

    One array, int64 [4, P], which processes share as a file; see :meth:`find`.
    """

    def __init__(self, lake: Lake, version: int, table: NDArray[np.int64]) -> None:
        self.lake, self.version, self.table = lake, version, table
        self._opened: lance.LanceDataset | None = None
        self._reader = Reader(partial(_read, ref(self)))

    def __len__(self) -> int:
        return self.table.shape[1]

    @classmethod
    def find(cls, lake: Lake, image_ids: Sequence[str]) -> Pictures:
        """Look all of them up in one pass over the names in the lake; :class:`StageError` for one that it does not have."""
        found = cls(lake, 0, _sorted(image_ids))
        table = found.table
        if not len(found):
            return found
        images, first = lake.open("images"), 0
        found.version = images.version
        for batch in images.to_batches(columns=["image_id"]):
            column, there = found.columns(batch["image_id"].to_pylist())
            table[OFFSET, column[there]] = first + np.flatnonzero(there)
            first += len(batch)
        if (table[OFFSET] == ABSENT).any():
            missing = min(name for name in image_ids if table[OFFSET, found.columns([name])[0][0]] == ABSENT)
            raise StageError(f"the lake has no picture {missing} that an item names", action="ingest the catalogue again")
        return found

    def columns(self, image_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The column of each id in the table [N], and whether it is there at all."""
        wanted, last = keys(image_ids), len(self) - 1
        if last < 0:
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
        column = np.searchsorted(self.table[0], wanted[:, 0])
        while True:  # of several with the same first half the one with the same second
            held = np.minimum(column, last)
            first, second = self.table[KEY, held] == wanted.T
            if not (further := (column <= last) & first & ~second).any():
                return held, (column <= last) & first & second
            column = column + further

    def read(self, image_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """``(image_id, bytes)`` of those pictures, each once, in any order; few are in memory. A worker asks the process that forked it.

        Where the table was written anew meanwhile, and its old version removed, they are looked up by their names.
        """
        return self._reader(list(image_ids))

    def read_here(self, image_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The same by this process itself."""
        left, columns = set(image_ids), self.columns(image_ids)[0]
        try:
            for name, content in bytes_at(self._images(), np.sort(self.table[OFFSET, columns]).tolist()):
                if name in left:
                    left.discard(name)
                    yield name, content
        except (OSError, ValueError):  # the version, or a file of it, is no more
            self._opened = None
        for name, content in image_bytes(self.lake, sorted(left)):
            left.discard(name)
            yield name, content
        if left:
            action = "start the training again: it begins anew with what the lake has"
            raise StageError(f"the lake has no picture {min(left)} any more", action=action)

    def _images(self) -> lance.LanceDataset:
        if (opened := self._opened) is None:
            images = self.lake.open("images")
            self._opened = opened = images if images.version == self.version else images.checkout_version(self.version)
        return opened


def hashes(lake: Lake, samples: Sequence[Sample]) -> NDArray[np.uint64]:
    """The perceptual hash [N] of the first picture of each sample; 0 of one without."""
    out = np.zeros(len(samples), np.uint64)
    names = Firsts(Samples.of(samples).names, np.arange(len(samples)))
    if not len(names):
        return out
    pictures = Pictures(lake, 0, _sorted(names))
    found = np.zeros(len(pictures), np.uint64)
    for batch in lake.open("images").to_batches(columns=["image_id", "phash"]):
        column, there = pictures.columns(batch["image_id"].to_pylist())
        found[column[there]] = duplicates.from_hex(batch["phash"].to_pylist())[there]
    out[names.rows] = found[pictures.columns(names)[0]]
    return out


def _sorted(image_ids: Sequence[str]) -> NDArray[np.int64]:
    """The table of pictures, none of which has been looked up; each once, by its hash."""
    wanted = keys(image_ids)
    order = np.lexsort((wanted[:, 1], wanted[:, 0]))  # of equal ones the first comes first
    order = order[np.append(True, (wanted[order][1:] != wanted[order][:-1]).any(1))[: len(order)]]
    place = np.empty(len(order), np.int64)
    place[np.argsort(order)] = np.arange(len(order))
    return np.stack([*wanted[order].T, place, np.full(len(order), ABSENT)]).astype(np.int64)


def _read(pictures: ref[Pictures], image_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """As :meth:`Pictures.read_here`; it keeps no pictures alive that nobody else needs."""
    found = pictures()
    return iter(()) if found is None else found.read_here(image_ids)
