"""The files of a base: written by pieces and read. What each of them is says ``index.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import index_kinds as kinds
from moon_ops.embeddings import index_training as training
from moon_ops.embeddings.index_codes import plan
from moon_ops.embeddings.index_kinds import Base, Delta
from moon_ops.embeddings.index_training import BLOCK_ROWS, Choice, Trained
from moon_ops.errors import ContractError
from moon_ops.inputs.contract import file_sha256
from moon_ops.pieces import let_go, spans, spilled

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


def write(fresh: Path, ids: Ids, vectors: Vectors, memory: int | None) -> Choice:
    """Make a base of the unit vectors [N, D] of the items [N] in the directory, of the kind that ``memory`` (bytes, None: any) allows."""
    trained = training.train(vectors, plan(len(ids), vectors.shape[1], memory, kinds.EXACT_UP_TO))
    ids = ids[trained.order]
    rows = np.argsort(ids)
    np.save(fresh / "ids.npy", ids)
    np.save(fresh / "rows.npy", rows)
    faiss.write_index(trained.index, str(fresh / "index.faiss"))
    if trained.by is not None:
        np.save(fresh / "sorted.npy", ids[rows])
        np.save(fresh / "rotation.npy", trained.by)
    del ids, rows
    if isinstance(trained.index, faiss.IndexIVF):
        _write_lists(fresh, vectors, trained)
    return training.choose(_as_base(fresh, trained.index), trained.plan)


def _write_lists(fresh: Path, vectors: Vectors, trained: Trained) -> None:
    """Vectors and codes in row order; written, not mapped: no memory."""
    index, lists = trained.index, trained.lists
    np.save(fresh / "starts.npy", np.searchsorted(lists, np.arange(index.nlist + 1)))
    with (fresh / "vectors.npy").open("wb") as matrix, (fresh / "codes.npy").open("wb") as codes:
        _head(matrix, np.float32, vectors.shape)
        _head(codes, np.uint8, (len(lists), index.sa_code_size()))
        for at in spans(len(lists), BLOCK_ROWS):
            some = np.ascontiguousarray(vectors[trained.order[at]])
            some.tofile(matrix)
            kinds.encode(index, some, lists[at], trained.by).tofile(codes)
            let_go(vectors)


def _head(file: BinaryIO, dtype: type, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})


def read(at: Path) -> tuple[Base, Ids, tuple[Ids, Ids]]:
    """The base in the directory, the id of each row, and the rows with their ids in the order of ids."""
    try:
        base = _as_base(at, faiss.read_index(str(at / "index.faiss")))
    except RuntimeError as fault:  # FAISS's word for a file that is not there
        if not (at / "index.faiss").is_file():
            raise FileNotFoundError(at / "index.faiss") from fault
        raise
    if base.by is not None:  # memory is short: looked up on the disk
        ids, rows, known = (np.load(at / name, mmap_mode="r") for name in ("ids.npy", "rows.npy", "sorted.npy"))
        return base, ids, (rows, known)
    ids, rows = (np.load(at / name) for name in ("ids.npy", "rows.npy"))
    return base, ids, (rows, ids[rows])


def frame(at: Path) -> tuple[Any, Vectors | None]:
    """The index in the directory without what it holds, and how vectors are turned for it."""
    return faiss.read_index(str(at / "index.faiss")), _rotation(at)


def _rotation(at: Path) -> Vectors | None:
    place = at / "rotation.npy"
    return np.load(place) if place.is_file() else None


def _as_base(at: Path, index: Any) -> Base:
    if isinstance(index, faiss.IndexIVF):
        vectors, codes = (np.load(at / name, mmap_mode="r") for name in ("vectors.npy", "codes.npy"))
        starts, by = np.load(at / "starts.npy"), _rotation(at)
        if by is None:
            kinds.fill(index, codes, np.arange(len(codes)))
        else:
            kinds.fill_whole(index, codes, starts)
        return Base(index, vectors, codes, starts, by)
    held = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)
    return Base(index, held, np.zeros((0, 0), np.uint8), np.zeros(0, np.int64))


def merged(base: Base, delta: Delta) -> tuple[Ids, Vectors]:
    """The base's rows that are still there [N], and the vectors of these, then the delta's, piece by piece."""
    live = np.setdiff1d(np.arange(len(base.vectors)), delta.tombstones, assume_unique=True)
    vectors = spilled(len(live) + len(delta.vectors), base.vectors.shape[1])
    for span in spans(len(live)):
        vectors[span] = base.vectors[live[span]]
        let_go(base.vectors)
        let_go(vectors)
    vectors[len(live) :] = delta.vectors
    return live, vectors


def verify(at: Path, files: dict[str, str]) -> None:
    """:class:`ContractError` for a file in the directory ``at`` that has another sha256."""
    for name, wanted in files.items():
        found = file_sha256(at / name)
        if found != wanted:
            raise ContractError(f"{at / name} has sha256 {found[:12]}, its header says {wanted[:12]}", action="run `moon publish --full`")
