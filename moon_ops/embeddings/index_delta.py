"""What has changed since an index's base was built, in layers (``layers.py``): files ``delta.npz``, ``delta-1.npz``, …

A layer has items with their unit vectors and the lists these lie in, the items that it takes out of the layers before it, and the rows of
the base that are gone since. M items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import layers
from moon_ops.embeddings.index_kinds import Delta

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def name(number: int) -> str:
    """The file of a layer."""
    return f"delta-{number}.npz" if number else "delta.npz"


def is_layer(file: str) -> bool:
    """Whether a file of an index is a layer."""
    return file == name(0) or file.startswith("delta-")


@dataclass(frozen=True)
class Layer:
    """Items, ascending [M], their vectors [M, D] and lists [M]; items ``removed`` from earlier layers, ``tombstones`` of the base."""

    ids: Ids
    vectors: Vectors
    lists: Ids
    removed: Ids
    tombstones: Ids

    def write(self, at: Path, number: int) -> None:
        """Write it into the directory ``at``."""
        file = at / name(number)
        np.savez(file, ids=self.ids, vectors=self.vectors, lists=self.lists, removed=self.removed, tombstones=self.tombstones)


def put(ids: Ids, vectors: Vectors, lists: Ids, removed: Ids, tombstones: Ids) -> Layer:
    """A layer of items in any order."""
    order = np.argsort(ids)
    return Layer(ids[order], vectors[order], lists[order], np.unique(removed), np.unique(tombstones))


class Layered:
    """The ``count`` layers in the directory ``at``, as far as they are asked for."""

    def __init__(self, at: Path, count: int) -> None:
        self.at = at
        self.named: list[tuple[Ids, Ids]] = []
        self.tombstones: list[Ids] = []
        self._orders: list[Ids] = []
        for number in range(count):
            with np.load(at / name(number)) as read:
                ids = read["ids"]
                self._orders.append(np.argsort(ids, kind="stable"))  # an older version did not sort them
                removed = read["removed"] if "removed" in read else np.zeros(0, np.int64)
                self.named.append((ids[self._orders[-1]], removed))
                self.tombstones.append(read["tombstones"])

    @property
    def sizes(self) -> list[int]:
        """What each layer names."""
        return [len(ids) + len(removed) + len(dead) for (ids, removed), dead in zip(self.named, self.tombstones, strict=True)]

    def merged(self, first: int, dim: int, more: Layer | None = None) -> Layer:
        """The layers from ``first`` on, and ``more``, as one: of an item the last one counts."""
        named = [*self.named[first:], *([] if more is None else [(more.ids, more.removed)])]
        ids, owner = layers.newest(named)
        kept, removed = ids[owner >= 0], ids[owner < 0]
        vectors, lists = np.empty((len(kept), dim), np.float32), np.empty(len(kept), np.int64)
        for number, (own, some, homes) in enumerate(self._contents(first, more)):
            mine = owner[owner >= 0] == number
            rows = np.searchsorted(own, kept[mine])
            vectors[mine], lists[mine] = some[rows], homes[rows]
        dead = [*self.tombstones[first:], *([] if more is None else [more.tombstones])]
        tombstones = np.unique(np.concatenate([np.zeros(0, np.int64), *dead]))
        return Layer(kept, vectors, lists, removed if first else removed[:0], tombstones)

    def _contents(self, first: int, more: Layer | None) -> Iterator[tuple[Ids, Vectors, Ids]]:
        """Ids, vectors and lists of the layers, one in memory at a time."""
        for number in range(first, len(self.named)):
            order = self._orders[number]
            with np.load(self.at / name(number)) as read:
                yield self.named[number][0], read["vectors"][order], read["lists"][order]
        if more is not None:
            yield more.ids, more.vectors, more.lists


def read(at: Path, count: int, dim: int) -> tuple[Delta, Ids]:
    """All ``count`` layers in the directory as one, and the ids of its items."""
    whole = Layered(at, count).merged(0, dim)
    return Delta(whole.vectors, whole.lists, whole.tombstones), whole.ids
