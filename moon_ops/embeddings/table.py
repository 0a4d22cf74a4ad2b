"""The representation table: one snapshot of vectors as a memory-mapped matrix, shared by training and serving.

This is the paper's dynamic loading: rows of a click log carry row numbers, vectors are gathered per batch, and memory grows with
the items, not with rows × sequence length. A table is a directory, replaced by an atomic rename: a reader that has opened one keeps it.
A refresh writes the new vectors as a layer (``layers.py``) over those of before and a base, which both generations share (hard links),
until the layers are a tenth of the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import layers
from moon_ops.embeddings.generations import fresh_directory, settled, swap, turn
from moon_ops.errors import ContractError, StageError
from moon_ops.files import link
from moon_ops.inputs.contract import require_same
from moon_ops.pieces import let_go, spans, spilled

MISSING = -1
LARGEST_DELTA = 0.1  # of the base; a larger one is merged into it
SMALL = 10_000  # items that are written anew at any refresh: milliseconds
Newer = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids, ascending, and their vectors
Chunks = Iterable[Newer]


class RepresentationTable:
    """Item ids and their unit vectors [N, D] of one contract: a base of ascending ids, and newer vectors, ascending, too."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        contract_id: str,
        newer: Newer | None = None,
    ) -> None:
        self.ids, self.vectors, self.contract_id = ids, vectors, contract_id
        self.newer_ids, self.newer_vectors = newer or (ids[:0], vectors[:0])

    def __len__(self) -> int:
        """How many ids have a vector."""
        return len(self.ids) + len(self.newer_ids) - int((_find(self.ids, self.newer_ids) >= 0).sum())

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    def rows(self, item_ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The row number of each item id, any shape; -1 where the item has no vector. Numbers hold for this snapshot only."""
        rows = _find(self.ids, item_ids)
        if not len(self.newer_ids):
            return rows
        newer = _find(self.newer_ids, item_ids)
        return np.where(newer >= 0, newer + len(self.ids), rows)

    def codes(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """:meth:`rows`: one snapshot has one vector of an item."""
        return self.rows(ids)

    def at(self, codes: NDArray[np.integer[Any]], times: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The row numbers ``codes``, whatever the time: a snapshot is of one moment."""
        return np.broadcast_to(codes, np.broadcast_shapes(codes.shape, times.shape))

    def gather(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Vectors [..., D] of row numbers [...]; zeros for -1."""
        out = np.zeros((*rows.shape, self.dim), np.float32)
        base = len(self.ids)
        for found, matrix, first in (((rows >= 0) & (rows < base), self.vectors, 0), (rows >= base, self.newer_vectors, base)):
            if found.all():
                return matrix[rows - first]
            if found.any():
                out[found] = matrix[rows[found] - first]
        return out

    def all(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Every id [N], ascending, and its vector [N, D]."""
        return self.of(np.union1d(self.ids, self.newer_ids))

    def of(self, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ``wanted`` ids that have a vector, ascending, and the vectors; copied, where they must be, piece by piece."""
        ids = np.intersect1d(wanted, np.union1d(self.ids, self.newer_ids))
        if not len(self.newer_ids) and len(ids) == len(self.ids):
            return self.ids, self.vectors
        found = spilled(len(ids), self.dim)
        for span in spans(len(ids)):
            found[span] = self.gather(self.rows(ids[span]))
            let_go(self.vectors)
            let_go(found)
        return ids, found

    @staticmethod
    def write(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> None:
        """Write the table to ``directory`` so that a reader sees the old one or the new one; ids need not be sorted."""
        if len(ids) != len(vectors) or len(np.unique(ids)) != len(ids):
            raise ContractError(
                f"{len(ids)} ids, {len(vectors)} vectors, {len(np.unique(ids))} different ids", action="pass one vector per item"
            )
        order = np.argsort(ids)
        RepresentationTable.fill(directory, [(ids[order], vectors[order])], vectors.shape[1], contract_id)

    @staticmethod
    def fill(directory: Path, chunks: Chunks, dim: int, contract_id: str) -> int:
        """Like :meth:`write`, from chunks of ascending ids and their vectors, one in memory at a time; how many items there are."""
        ids, count = [], 0
        with fresh_directory(directory) as fresh:
            with (fresh / "vectors.f32").open("wb") as matrix:
                for some, vectors in chunks:
                    matrix.write(np.ascontiguousarray(vectors, np.float32).tobytes())
                    ids.append(np.asarray(some, np.int64))
                    count += len(some)
            np.save(fresh / "ids.npy", np.concatenate(ids) if ids else np.zeros(0, np.int64))
            _finish(fresh, directory, dim, contract_id, count, [], count)
        return count

    @staticmethod
    def update(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> int:
        """Put newer vectors [M, D] of the items [M] over those of the table there; how many items it has then.

        The base's vectors are not read, unless the newer ones have become a tenth of them.
        """
        with turn(directory):
            return RepresentationTable._update(directory, ids, vectors, contract_id)

    @staticmethod
    def _update(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> int:
        _require(directory)
        base = directory.resolve()
        old = _Stored(base)
        require_same(contract_id, old.contract_id, what=f"table {directory.name}")
        if not len(ids):
            return old.there()
        order = np.argsort(ids)
        ids, vectors = ids[order], vectors[order]
        known, _ = layers.named([(some, some[:0]) for some in (old.ids, *old.newer_ids)], ids)
        count = old.there() + int((~known).sum())
        if len(ids) + sum(map(len, old.newer_ids)) > LARGEST_DELTA * len(old.ids) or len(old.ids) <= SMALL:
            newer = old.merged(0, (ids, vectors))
            whole = RepresentationTable(old.ids, old.vectors, contract_id, newer)
            RepresentationTable.write(directory, *whole.all(), contract_id)
            return count
        staying = layers.staying([len(some) for some in old.newer_ids], len(ids))
        with fresh_directory(directory) as fresh:
            for name in ("ids.npy", "vectors.f32", *(name for number in range(staying) for name in _layer(number))):
                link(base / name, fresh / name)
            merged, places = old.merged(staying, (ids, vectors)), _layer(staying)
            np.save(fresh / places[0], merged[0])
            np.save(fresh / places[1], merged[1])
            sizes = [*(len(some) for some in old.newer_ids[:staying]), len(merged[0])]
            _finish(fresh, directory, old.dim, contract_id, len(old.ids), sizes, count)
        return count

    @classmethod
    def open(cls, directory: Path) -> RepresentationTable:
        """Map the table into memory; nothing is read until it is gathered."""
        _require(directory)
        return settled(directory, cls._map)

    @classmethod
    def _map(cls, at: Path) -> RepresentationTable:
        stored = _Stored(at)
        return cls(stored.ids, stored.vectors, stored.contract_id, stored.merged(0))


class _Stored:
    """A table's files, mapped, so that one that has been cut is noticed; ids of the layers are read."""

    def __init__(self, at: Path) -> None:
        self.at, self.meta = at, json.loads((at / "table.json").read_text())
        items, self.dim, self.contract_id = int(self.meta["items"]), int(self.meta["dim"]), str(self.meta["contract_id"])
        self.ids = np.load(at / "ids.npy", mmap_mode="r" if items else None)
        shape = (items, self.dim)
        self.vectors = np.memmap(at / "vectors.f32", np.float32, "r", shape=shape) if items else np.zeros(shape, np.float32)
        before = [self.meta["newer"]] if self.meta.get("newer") else []  # an older version's table has one layer
        layers_of = [_layer(number) for number in range(len(self.meta.get("layers", before)))]
        self.newer_ids = [np.load(at / ids) for ids, _ in layers_of]
        self.newer_vectors = [np.load(at / vectors, mmap_mode="r") for _, vectors in layers_of]

    def there(self) -> int:
        """How many ids have a vector."""
        known = self.meta.get("there")
        return len(RepresentationTable._map(self.at)) if known is None else int(known)

    def merged(self, first: int, *more: Newer) -> Newer:
        """Ids, ascending, and vectors of the layers from ``first`` on, and of ``more`` over them."""
        named = [*zip(self.newer_ids[first:], self.newer_vectors[first:], strict=True), *more]
        ids, owner = layers.newest([(some, some[:0]) for some, _ in named])
        out = np.empty((len(ids), self.dim), np.float32)
        for number, (own, vectors) in enumerate(named):
            mine = owner == number
            out[mine] = vectors[np.searchsorted(own, ids[mine])]
        return ids, out


def _require(directory: Path) -> None:
    if not (directory / "table.json").is_file():
        raise StageError(f"there is no representation table at {directory}", action="run `moon publish` first")


def _layer(number: int) -> tuple[str, str]:
    """The files of a layer: ids and vectors."""
    return (f"newer_ids-{number}.npy", f"newer_vectors-{number}.npy") if number else ("newer_ids.npy", "newer_vectors.npy")


def _find(known: NDArray[np.int64], wanted: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The place of each ``wanted`` id in the ascending ``known`` ones; -1 where it is not there."""
    if not len(known):
        return np.full(np.shape(wanted), MISSING)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, MISSING)


def _finish(fresh: Path, directory: Path, dim: int, contract_id: str, items: int, sizes: list[int], there: int) -> None:
    meta = {"contract_id": contract_id, "items": items, "layers": sizes, "there": there, "dim": dim}
    if len(sizes) <= 1:  # an older version reads it; without this it stops at a table of more layers
        meta["newer"] = sum(sizes)
    (fresh / "table.json").write_text(json.dumps(meta) + "\n")
    swap(fresh, directory)
