"""The representation table: one snapshot of vectors as a memory-mapped matrix, shared by training and serving.

This is the paper's dynamic loading: rows of a click log carry row numbers, vectors are gathered per batch, and memory grows with
the items, not with rows × sequence length. A table is a directory, replaced by an atomic rename: a reader that has opened one keeps it.
A refresh writes the new vectors beside a base that both generations share (hard links), until they are a tenth of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.generations import fresh_directory, settled, swap, turn
from moon_ops.errors import ContractError, StageError
from moon_ops.files import link
from moon_ops.inputs.contract import require_same
from moon_ops.pieces import let_go, spans, spilled

MISSING = -1
LARGEST_DELTA = 0.1  # of the base; a larger one is merged into it
SMALL = 10_000  # items that are written anew at any refresh: milliseconds
Chunks = Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]


class RepresentationTable:
    """Item ids and their unit vectors [N, D] of one contract: a base of ascending ids, and newer vectors, ascending, too."""

    def __init__(
        self,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        contract_id: str,
        newer: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
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
            _finish(fresh, directory, dim, contract_id, count, 0)
        return count

    @staticmethod
    def update(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> int:
        """Put newer vectors [M, D] of the items [M] over those of the table there; how many items it has then.

        The base is not read, unless the newer ones have become too many for a list of their own.
        """
        with turn(directory):
            return RepresentationTable._update(directory, ids, vectors, contract_id)

    @staticmethod
    def _update(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> int:
        old = RepresentationTable.open(directory)
        require_same(contract_id, old.contract_id, what=f"table {directory.name}")
        keep = ~np.isin(old.newer_ids, ids)
        order = np.argsort(merged := np.concatenate([old.newer_ids[keep], ids]))
        newer = (merged[order], np.concatenate([old.newer_vectors[keep], vectors])[order])
        table = RepresentationTable(old.ids, old.vectors, contract_id, newer)
        if len(newer[0]) > LARGEST_DELTA * len(old.ids) or len(old.ids) <= SMALL:
            RepresentationTable.write(directory, *table.all(), contract_id)
            return len(table)
        base = directory.resolve()
        with fresh_directory(directory) as fresh:
            for name in ("ids.npy", "vectors.f32"):
                link(base / name, fresh / name)
            np.save(fresh / "newer_ids.npy", newer[0])
            np.save(fresh / "newer_vectors.npy", newer[1])
            _finish(fresh, directory, old.dim, contract_id, len(old.ids), len(newer[0]))
        return len(table)

    @classmethod
    def open(cls, directory: Path) -> RepresentationTable:
        """Map the table into memory; nothing is read until it is gathered."""
        if not (directory / "table.json").is_file():
            raise StageError(f"there is no representation table at {directory}", action="run `moon publish` first")
        return settled(directory, cls._map)

    @classmethod
    def _map(cls, at: Path) -> RepresentationTable:
        meta = json.loads((at / "table.json").read_text())
        shape = (meta["items"], meta["dim"])
        vectors = np.memmap(at / "vectors.f32", np.float32, "r", shape=shape) if shape[0] else np.zeros(shape, np.float32)
        newer = (np.load(at / "newer_ids.npy"), np.load(at / "newer_vectors.npy")) if meta["newer"] else None
        return cls(np.load(at / "ids.npy", mmap_mode="r" if shape[0] else None), vectors, meta["contract_id"], newer)


def _find(known: NDArray[np.int64], wanted: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The place of each ``wanted`` id in the ascending ``known`` ones; -1 where it is not there."""
    if not len(known):
        return np.full(np.shape(wanted), MISSING)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, MISSING)


def _finish(fresh: Path, directory: Path, dim: int, contract_id: str, items: int, newer: int) -> None:
    (fresh / "table.json").write_text(json.dumps({"contract_id": contract_id, "items": items, "newer": newer, "dim": dim}) + "\n")
    swap(fresh, directory)
