"""An index in several parts behind one search, merged exactly. N items, D dimensions, S shards.

A shard is an index of its own (``index.py``) of a range of item ids; a directory of them is a generation: it is built aside and takes the
old one's place in one step, so a killed build leaves what was there. An update goes to the shards it concerns, one after the other: every
item is in one shard alone, so that a reader finds each as it was or as it is. Merging is by cosine, of equal ones the greater id first: the
order of FAISS's exact scan over ascending ids. Which of those are left that are as near as the k-th, FAISS leaves to chance.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from moon_ops.embeddings import index
from moon_ops.embeddings.generations import fresh_directory, held, settled, swap
from moon_ops.embeddings.index import Ids, IndexHeader, ItemIndex, Vectors
from moon_ops.errors import ContractError, InputError, StageError

HEADER = "shards.json"


class ItemShards:
    """Searchable shards of one contract. May be searched from many threads; ``threads`` of its own ask the shards."""

    def __init__(self, shards: list[ItemIndex], threads: int = 1) -> None:
        contracts = {shard.header.contract_id for shard in shards}
        if len(contracts) != 1:
            raise ContractError(f"shards of {len(contracts)} contracts: {', '.join(sorted(contracts))}", action="build all of them again")
        self.shards = shards
        self._map = ThreadPoolExecutor(threads, "shards").map if threads > 1 else map

    @classmethod
    def open(cls, directory: Path, threads: int = 1, previous: ItemShards | None = None) -> ItemShards:
        """Read all shards; what has not changed since ``previous`` is kept. :class:`StageError` if one is missing."""

        def read(at: Path) -> ItemShards:
            count = len(json.loads((at / HEADER).read_text())["first"])
            known = previous.shards if previous is not None and len(previous.shards) == count else [None] * count
            return cls([ItemIndex.open(at / str(n), known[n]) for n in range(count)], threads)

        try:
            return settled(directory, read)
        except FileNotFoundError as missing:
            raise StageError(f"there are no shards at {directory}: {missing}", action="build them first") from missing

    def search(self, vectors: Vectors, k: int, contract_id: str) -> tuple[Ids, Vectors]:
        """Item ids [B, k] and cosines [B, k], best first, of all shards together: as :meth:`ItemIndex.search`."""
        found = list(self._map(lambda shard: shard.search(vectors, k, contract_id), self.shards))
        ids, cosines = (np.concatenate([part[n] for part in found], 1) for n in (0, 1))
        order = np.lexsort((-ids, -cosines), axis=1)[:, :k]
        return np.take_along_axis(ids, order, 1), np.take_along_axis(cosines, order, 1)

    def items(self) -> Ids:
        """The ids of all items that can be found, ascending."""
        return np.concatenate([shard.items() for shard in self.shards])


def build(directory: Path, ids: Ids, vectors: Vectors, contract_id: str, *, shards: int, memory: int | None = None) -> list[IndexHeader]:
    """Build ``shards`` indexes of about equally many items, by ranges of the ascending ``ids`` [N], each within ``memory`` / S.

    The vectors [N, D] may lie in a file: a shard's are read from there.
    """
    if not 1 <= shards <= len(ids) or (np.diff(ids) <= 0).any():
        raise InputError(f"{shards} shards of {len(ids)} ids: there are fewer ids, or they do not ascend", action="pass ascending ids")
    bounds = np.linspace(0, len(ids), shards + 1).astype(int).tolist()
    with fresh_directory(directory) as fresh:
        make = partial(index.build, contract_id=contract_id, memory=memory and memory // shards)
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        headers = [make(fresh / str(n), ids[part], vectors[part]) for n, part in enumerate(parts)]
        (fresh / HEADER).write_text(json.dumps({"first": [int(ids[part.start]) for part in parts]}) + "\n")
        with held(directory):
            swap(fresh, directory)
    return headers


def update(directory: Path, ids: Ids, vectors: Vectors, removed: Ids, contract_id: str) -> list[IndexHeader]:
    """Put new and changed items [M] with their vectors [M, D] into their shards, and take ``removed`` out: as :func:`.index.update`."""
    with held(directory) as at:
        if at is None:
            raise StageError(f"there are no shards at {directory} to update", action="build them first")
        first = np.array(json.loads((at / HEADER).read_text())["first"])
        headers = []
        for shard in range(len(first)):
            mine, gone = (np.maximum(np.searchsorted(first, some, side="right") - 1, 0) == shard for some in (ids, removed))
            if mine.any() or gone.any():
                headers.append(index.update(at / str(shard), ids[mine], vectors[mine], removed[gone], contract_id))
            else:
                headers.append(IndexHeader.read(at / str(shard)))
        return headers
