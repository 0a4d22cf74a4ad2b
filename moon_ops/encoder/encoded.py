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

from moon_ops.encoder.answering import Reader
from moon_ops.errors import StageError
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import bytes_at, image_bytes

if TYPE_CHECKING:
    import lance

KEY, PLACE, OFFSET = slice(0, 2), 2, 3  # rows of the table of pictures
ABSENT = -1


def keys(image_ids: Sequence[str]) -> NDArray[np.int64]:
    """Two numbers [N, 2] that stand for each id: 16 bytes of a hash, where a text takes 113."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in image_ids)
    return np.frombuffer(digests, np.int64).reshape(-1, 2)


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
        wanted = keys(list(dict.fromkeys(image_ids)))
        order = np.lexsort((wanted[:, 1], wanted[:, 0]))
        table = np.stack([*wanted[order].T, order, np.full(len(order), ABSENT)]).astype(np.int64)
        found = cls(lake, 0, table)
        if not len(found):
            return found
        images, first = lake.open("images"), 0
        found.version = images.version
        for batch in images.to_batches(columns=["image_id"]):
            column, there = found.columns(batch["image_id"].to_pylist())
            table[OFFSET, column[there]] = first + np.flatnonzero(there)
            first += len(batch)
        absent = np.flatnonzero(table[OFFSET] == ABSENT)
        if len(absent):
            places = set(table[PLACE, absent].tolist())
            missing = min(name for place, name in enumerate(dict.fromkeys(image_ids)) if place in places)
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


def _read(pictures: ref[Pictures], image_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """As :meth:`Pictures.read_here`; it keeps no pictures alive that nobody else needs."""
    found = pictures()
    return iter(()) if found is None else found.read_here(image_ids)
