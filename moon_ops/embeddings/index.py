"""Nearest items by FAISS: inner product of unit vectors, ids are item ids, the contract stands in the header.

An index is a directory (``index.faiss`` and ``index.json``) that is never changed; a newer one takes its place in one step.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings.table import settled, swap
from moon_ops.errors import ContractError, StageError
from moon_ops.lake.contract import file_sha256, require_same

EXACT_UP_TO = 100_000  # items: an exact search over 100,000 x 128 takes about 2 ms on one core, and has nothing to tune


@dataclass(frozen=True)
class IndexHeader:
    """What an index holds; ``reason`` says why it is of its kind."""

    contract_id: str
    kind: str
    reason: str
    items: int
    dim: int
    sha256: str


class ItemIndex:
    """A searchable index of one contract."""

    def __init__(self, header: IndexHeader, index: faiss.Index) -> None:
        self.header = header
        self._index = index

    def search(self, vectors: NDArray[np.float32], k: int, contract_id: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Item ids [B, k] and cosines [B, k], best first, of queries [B, D] made under ``contract_id``.

        Fewer than k items leave id -1 at the end. Raises :class:`ContractError` for another contract's queries.
        """
        require_same(contract_id, self.header.contract_id, what="search")
        cosines, ids = self._index.search(np.ascontiguousarray(vectors, np.float32), k)
        return ids, cosines

    @classmethod
    def open(cls, directory: Path) -> ItemIndex:
        """Read an index and check it against its header."""
        if not (directory / "index.json").is_file():
            raise StageError(f"there is no index at {directory}", action="run `moon publish` first")
        return settled(directory, cls._read)

    @classmethod
    def _read(cls, at: Path) -> ItemIndex:
        header = IndexHeader(**json.loads((at / "index.json").read_text()))
        found = file_sha256(at / "index.faiss")
        if found != header.sha256:
            raise ContractError(
                f"{at / 'index.faiss'} has sha256 {found[:12]}, its header says {header.sha256[:12]}", action="run `moon publish` again"
            )
        return cls(header, faiss.read_index(str(at / "index.faiss")))


def build(directory: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], contract_id: str) -> IndexHeader:
    """Index the vectors [N, D] of the items [N] and put the index in ``directory``, replacing the one there in one step."""
    if not len(ids):
        raise StageError("there are no vectors to index", action="run `moon embed` first")
    kind, reason, inner = _choose(len(ids), vectors.shape[1])
    index = faiss.IndexIDMap2(inner)
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    faiss.write_index(index, str(fresh / "index.faiss"))
    header = IndexHeader(contract_id, kind, reason, len(ids), vectors.shape[1], file_sha256(fresh / "index.faiss"))
    (fresh / "index.json").write_text(json.dumps(asdict(header), indent=2) + "\n")
    swap(fresh, directory)
    return header


def _choose(items: int, dim: int) -> tuple[str, str, faiss.Index]:
    """The kind of index for so many items, why, and an empty one."""
    if items <= EXACT_UP_TO:
        return "flat", f"{items:,} items are at most {EXACT_UP_TO:,}: exact search is fast enough", faiss.IndexFlatIP(dim)
    graph = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, 128
    return "hnsw", f"{items:,} items are more than {EXACT_UP_TO:,}: a graph keeps search below a millisecond", graph
