"""The representation table: one snapshot of vectors as a memory-mapped matrix, shared by training and serving.

This is the paper's dynamic loading: rows of a click log carry row numbers, vectors are gathered per batch, and memory grows with
the items, not with rows × sequence length. A table is a directory, replaced by an atomic rename: a reader that has opened one keeps it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moon_ops.errors import ContractError, StageError

MISSING = -1
Opened = TypeVar("Opened")


class RepresentationTable:
    """Sorted item ids [N] and their unit vectors [N, D], of one contract."""

    def __init__(self, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> None:
        self.ids = ids
        self.vectors = vectors
        self.contract_id = contract_id

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row number of each item id, any shape; -1 where the item has no vector."""
        at = np.searchsorted(self.ids, item_ids)
        found = np.minimum(at, max(len(self.ids) - 1, 0))
        hit = self.ids[found] == item_ids if len(self.ids) else np.zeros(np.shape(item_ids), bool)
        return np.where(hit, found, MISSING)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors [..., D] of row numbers [...]; zeros for -1."""
        if not len(self):
            return np.zeros((*rows.shape, self.vectors.shape[1]), np.float32)
        out = self.vectors[np.maximum(rows, 0)]
        out[rows < 0] = 0.0
        return out

    @staticmethod
    def write(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> None:
        """Write the table to ``directory`` so that a reader sees the old one or the new one; ids need not be sorted."""
        if len(ids) != len(vectors) or len(np.unique(ids)) != len(ids):
            raise ContractError(
                f"{len(ids)} ids, {len(vectors)} vectors, {len(np.unique(ids))} different ids", action="pass one vector per item"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        order = np.argsort(ids)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        np.save(fresh / "ids.npy", np.ascontiguousarray(ids[order], np.int64))
        np.save(fresh / "vectors.npy", np.ascontiguousarray(vectors[order], np.float32))
        (fresh / "table.json").write_text(json.dumps({"contract_id": contract_id, "items": len(ids), "dim": vectors.shape[1]}) + "\n")
        swap(fresh, directory)

    @classmethod
    def open(cls, directory: Path) -> RepresentationTable:
        """Map the table into memory; nothing is read until it is gathered."""
        if not (directory / "table.json").is_file():
            raise StageError(f"there is no representation table at {directory}", action="run `moon publish` first")
        return settled(directory, cls._map)

    @classmethod
    def _map(cls, at: Path) -> RepresentationTable:
        meta = json.loads((at / "table.json").read_text())
        return cls(np.load(at / "ids.npy"), np.load(at / "vectors.npy", mmap_mode="r"), meta["contract_id"])


def settled(place: Path, read: Callable[[Path], Opened]) -> Opened:
    """``read`` of the directory that ``place`` points to now: all files are of one writing, even if another takes its place meanwhile."""
    while True:
        at = place.resolve()
        try:
            return read(at)
        except FileNotFoundError:
            if place.resolve() == at:  # else a newer one has taken its place, and this one was removed under us
                raise


def swap(fresh: Path, place: Path) -> None:
    """Make ``place`` a symbolic link to the directory ``fresh`` in one step, and remove what it pointed to before."""
    before = place.resolve() if place.is_symlink() else None
    link = place.with_name(f".{place.name}-link-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(place)
    if before is not None and before != fresh:
        shutil.rmtree(before, ignore_errors=True)
