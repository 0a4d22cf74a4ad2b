"""Nearest items by FAISS: inner product of unit vectors, ids are item ids, the contract stands in the header.

An index is a directory that is never changed; a newer generation takes its place in one step, and a reader keeps what it has opened:

=================  ==================================================================================================
``index.json``     the header
``index.faiss``    the base: a flat index, or trained inverted lists when items are many (``index_training.py``)
``ids.npy``        item id of each row of the base [N]
``rows.npy``       rows of the base, sorted by item id [N]
``vectors.npy``    unit vectors [N, D] in row order; a flat index holds them itself, and has none of the next two either
``codes.npy``      the codes of the vectors [N, C]; they are put into the lists when the index is opened
``rotation.npy``   how vectors are turned before they become product codes (``index_codes.py``); other codes have none
``sorted.npy``     of product codes likewise: the ids in order [N], which are looked up on the disk
``starts.npy``     the row that each list begins with [L + 1]
``delta.npz``      what changed since, in layers (``delta-1.npz``, …; ``index_delta.py``): new items, and rows that are gone (tombstones)
=================  ==================================================================================================

``update`` writes a generation with one more layer and hard links to the others and the base, so that it costs what is new. ``compact``, or
``build`` with all vectors, makes a new base; ``compaction_due`` says when. Nothing here knows where vectors come from. What a directory of
several indexes is, ``index_shards.py`` says: it has the same header, and each of its indexes is one of these.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import index_delta, layers
from moon_ops.embeddings import index_files as stored
from moon_ops.embeddings import index_kinds as kinds
from moon_ops.embeddings.generations import fresh_directory, held, settled, swap
from moon_ops.embeddings.index_codes import FLAT
from moon_ops.embeddings.index_kinds import Base, Delta
from moon_ops.errors import InputError, StageError
from moon_ops.files import link
from moon_ops.inputs.contract import file_sha256, require_same
from moon_ops.pieces import let_go, spans

CHANGED_AT_MOST = 0.1  # delta and tombstones, of the base's items
USUAL = {"refine": kinds.REFINE, "shards": 1, "layers": 1}  # numbers that a header leaves out
RECALL_FLOOR = 0.98  # of the ten nearest; a base is built for index_kinds.RECALL
HEADER = "index.json"

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class IndexHeader:
    """What an index holds; ``reason`` says why it is of its kind, ``recall`` is its base's when it was built.

    ``items`` are those that can be found, ``files`` the sha256 of each file, and ``sha256`` that of all of them together. A number that is
    its default is not in the file.
    """

    contract_id: str
    kind: str
    reason: str
    items: int
    dim: int
    sha256: str
    base_items: int
    delta_items: int
    tombstones: int
    probes: int
    recall: float
    files: dict[str, str]
    refine: int = kinds.REFINE  # times k candidates are compared by their vectors
    shards: int = 1  # indexes that this one is made of
    layers: int = 1  # of what has changed since the base was built

    @classmethod
    def read(cls, at: Path) -> IndexHeader:
        """The header in the directory ``at``; :class:`StageError` if this version did not write it."""
        content = json.loads((at / HEADER).read_text())
        if set(content) | set(USUAL) != set(cls.__dataclass_fields__):
            raise StageError(f"{at / HEADER} was written by another version of moon_ops", action="run `moon publish --full`")
        return cls(**content)

    def write(self, at: Path) -> None:
        """Write it into the directory ``at``."""
        content = {name: value for name, value in asdict(self).items() if USUAL.get(name) != value}
        (at / HEADER).write_text(json.dumps(content, indent=2) + "\n")


class NothingLeftError(StageError):
    """An index would have no item."""


class ItemIndex:
    """A searchable index of one contract. May be searched from many threads."""

    def __init__(self, header: IndexHeader, base: Base, ids: Ids, order: tuple[Ids, Ids], delta: Delta, delta_ids: Ids) -> None:
        self.header = header
        self.base, self._ids, self._order, self._delta_ids = base, ids, order, delta_ids
        self.searcher = kinds.Flat(base, delta) if header.kind == FLAT else kinds.Lists(base, delta, header.probes, header.refine)

    def search(self, vectors: Vectors, k: int, contract_id: str) -> tuple[Ids, Vectors]:
        """Item ids [B, k] and cosines [B, k], best first, of queries [B, D] made under ``contract_id``.

        Fewer than k items leave id -1 at the end. Raises :class:`ContractError` for another contract's queries.
        """
        self.require(vectors, k, contract_id)
        rows, cosines = self.searcher.nearest(np.ascontiguousarray(vectors, np.float32), k)
        return self.items_of(rows), cosines

    def require(self, vectors: Vectors, k: int, contract_id: str) -> None:
        """Raise what :meth:`search` raises."""
        require_same(contract_id, self.header.contract_id, what="search")
        if vectors.ndim != 2 or vectors.shape[1] != self.header.dim or k < 1:
            problem = f"queries of shape {vectors.shape} and k = {k}: the index has {self.header.dim} dimensions"
            raise InputError(problem, action="pass [B, D] and a positive k")

    def rows(self, items: Ids) -> Ids:
        """The rows, ascending, of those ``items`` (ascending) that can be found."""
        rows, known = self._order
        place, live = np.minimum(np.searchsorted(known, items), len(known) - 1), np.zeros(len(known), bool)
        live[rows[place[known[place] == items]]] = True
        live[self.searcher.delta.tombstones] = False
        late = np.append(items, -1)[np.searchsorted(items, self._delta_ids)] == self._delta_ids
        return np.concatenate([np.flatnonzero(live), len(known) + np.flatnonzero(late)])

    def holds(self, item_id: int) -> bool:
        """Whether the item can be found."""
        return bool(len(self.rows(np.array([item_id]))))

    def items(self) -> Ids:
        """The ids of all items that can be found, ascending."""
        live = np.setdiff1d(np.arange(len(self._ids)), self.searcher.delta.tombstones, assume_unique=True)
        return np.union1d(self._ids[live], self._delta_ids)

    def items_of(self, rows: Ids) -> Ids:
        """The items of rows of any shape; -1 for -1."""
        last = len(self._ids) - 1
        items: Ids = np.where(rows < 0, -1, self._ids[np.clip(rows, 0, last)])
        later = rows > last
        if later.any():
            items[later] = self._delta_ids[rows[later] - last - 1]
        return items

    @classmethod
    def open(cls, directory: Path, previous: ItemIndex | None = None) -> ItemIndex:
        """Read an index and check it against its header; the base of ``previous`` is kept if this generation has the same."""
        try:
            return settled(directory, lambda at: cls.read(at, previous))
        except FileNotFoundError as missing:
            raise StageError(f"there is no index at {directory}: {missing}", action="run `moon publish` first") from missing

    @classmethod
    def read(cls, at: Path, previous: ItemIndex | None = None) -> ItemIndex:
        """:meth:`open` of the directory itself; :class:`FileNotFoundError` if a file of it is gone."""
        header = IndexHeader.read(at)
        if previous is not None and _base_files(previous.header) == _base_files(header):
            base, ids, order = previous.base, previous._ids, previous._order
        else:
            stored.verify(at, _base_files(header))
            base, ids, order = stored.read(at)
        stored.verify(at, {name: header.files[name] for name in _layer_files(header)})
        return cls(header, base, ids, order, *index_delta.read(at, header.layers, header.dim))


def build(directory: Path, ids: Ids, vectors: Vectors, contract_id: str, *, memory: int | None = None) -> IndexHeader:
    """Index the unit vectors [N, D] of the items [N] and put the index in ``directory``, replacing the one there in one step.

    ``memory``: bytes that it may take in a process, which decide its kind (None: any). The vectors may lie in a file: no copy is made.

    Raises :class:`StageError` if there are none and :class:`InputError` for ids or vectors that cannot be indexed.
    """
    if not len(ids):
        raise StageError("there are no vectors to index", action="run `moon embed` first")
    with fresh_directory(directory) as fresh:
        header = write_base(fresh, ids, vectors, contract_id, memory)
        with held(directory):
            swap(fresh, directory)
    return header


def update(directory: Path, ids: Ids, vectors: Vectors, removed: Ids, contract_id: str) -> IndexHeader:
    """Put new and changed items [M] with their unit vectors [M, D] into the index, and take the items ``removed`` out of it.

    Costs what is new, and at times the layers that are merged with it; the base's vectors are not read. Unknown removed ids are passed
    over. Raises :class:`StageError` if there is no index or nothing would be left of it, :class:`ContractError` for another contract,
    :class:`InputError` for bad input.
    """
    with held(directory) as at, fresh_directory(directory) as fresh:
        if at is None:
            raise StageError(f"there is no index at {directory} to update", action="run `moon publish` first")
        header = write_update(at, fresh, ids, vectors, removed, contract_id)
        swap(fresh, directory)
    return header


def compact(directory: Path, *, memory: int | None = None) -> IndexHeader:
    """Build a new base of all that the index holds, as :func:`build`; updates wait until it is there."""
    with held(directory) as at, fresh_directory(directory) as fresh:
        if at is None:
            raise StageError(f"there is no index at {directory} to compact", action="run `moon publish` first")
        header = write_compacted(at, fresh, memory)
        swap(fresh, directory)
    return header


def write_base(fresh: Path, ids: Ids, vectors: Vectors, contract_id: str, memory: int | None) -> IndexHeader:
    """:func:`build`, into the empty directory ``fresh``."""
    ids, vectors = _checked(ids, vectors)
    return _write_base(fresh, ids, vectors, contract_id, memory)


def write_update(at: Path, fresh: Path, ids: Ids, vectors: Vectors, removed: Ids, contract_id: str) -> IndexHeader:
    """:func:`update` of the generation ``at``, into the empty directory ``fresh``."""
    ids, vectors = _checked(ids, vectors)
    if len(both := np.intersect1d(ids, removed)):
        raise InputError(f"removed: item {both[0]} is among the new ids too", action="pass an item as new or as removed")
    header = IndexHeader.read(at)
    require_same(contract_id, header.contract_id, what="index and update")
    if len(ids) and vectors.shape[1] != header.dim:
        raise InputError(f"vectors: {vectors.shape[1]} dimensions, the index has {header.dim}", action="pass vectors of one encoder")
    for name in _base_files(header):
        link(at / name, fresh / name)
    return _write_layer(at, fresh, header, ids, vectors, np.asarray(removed, np.int64))


def write_compacted(at: Path, fresh: Path, memory: int | None) -> IndexHeader:
    """:func:`compact` of the generation ``at``, into the empty directory ``fresh``."""
    old = ItemIndex.read(at)
    live, vectors = stored.merged(old.base, old.searcher.delta)
    ids = np.concatenate([old._ids[live], old._delta_ids])
    return _write_base(fresh, ids, vectors, old.header.contract_id, memory)


def compaction_due(header: IndexHeader, recall: float = 1.0) -> str | None:
    """Why the index should be compacted, None if it need not be; ``recall`` is what :func:`probe` found of it."""
    changed = header.delta_items + header.tombstones
    if changed > CHANGED_AT_MOST * header.base_items:
        return f"{changed:,} changes are more than {CHANGED_AT_MOST:.0%} of the base's {header.base_items:,} items"
    if recall < RECALL_FLOOR:
        return f"recall {recall:.3f} is below {RECALL_FLOOR}: the base was built for {kinds.RECALL}"
    return None


def probe(index: ItemIndex, queries: int, k: int, seed: int = 0) -> float:
    """Recall@k of the index on itself: of the k nearest of ``queries`` sampled items that a full scan finds, the share that it finds."""
    return kinds.Probe(index.base, index.searcher.delta, queries, k, seed).recall(index.searcher)


def _checked(ids: Ids, vectors: Vectors) -> tuple[Ids, Vectors]:
    """Ids and vectors as FAISS wants them; :class:`InputError` if they are not different 63-bit ids with a unit vector each."""
    ids = np.ascontiguousarray(ids, np.int64)
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise InputError(f"{len(ids)} ids, vectors of shape {vectors.shape}: not one each", action="pass ids [N] and vectors [N, D]")
    if len(np.unique(ids)) != len(ids) or (len(ids) and ids.min() < 0):
        raise InputError("ids: an id is negative or there twice; a search could not name its item", action="pass each item once")
    vectors = np.ascontiguousarray(vectors, np.float32)
    off = np.empty(len(vectors), np.float32)
    for span in spans(len(vectors)):
        off[span] = np.abs(np.einsum("nd,nd->n", vectors[span], vectors[span]) - 1)
        let_go(vectors)
    if not np.all(off < 0.02):  # nan is not less either
        worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
        problem = f"vectors: item {ids[worst]} has a vector of another length than 1; its cosines would be wrong"
        raise InputError(problem, action="normalise the vectors")
    return ids, vectors


def _write_base(fresh: Path, ids: Ids, vectors: Vectors, contract_id: str, memory: int | None) -> IndexHeader:
    choice = stored.write(fresh, ids, vectors, memory)
    found = {path.name: file_sha256(path) for path in sorted(fresh.iterdir())}
    chosen = (choice.probes, choice.recall, found, choice.refine)
    header = IndexHeader(contract_id, choice.kind, choice.reason, 0, vectors.shape[1], "", len(ids), 0, 0, *chosen)
    nothing = np.zeros(0, np.int64)
    index_delta.put(nothing, np.zeros((0, header.dim), np.float32), nothing, nothing, nothing).write(fresh, 0)
    return _seal(fresh, header)


def _write_layer(at: Path, fresh: Path, header: IndexHeader, ids: Ids, vectors: Vectors, removed: Ids) -> IndexHeader:
    """The layers of ``at`` and a new one, with tombstones for all that is no longer in the base; small ones are merged with it."""
    gone, old = np.concatenate([ids, np.unique(removed)]), index_delta.Layered(at, header.layers)
    base_ids, rows = (np.load(at / name, mmap_mode="r") for name in ("ids.npy", "rows.npy"))
    place = np.searchsorted(base_ids, gone, sorter=rows)
    found = rows[np.minimum(place, len(rows) - 1)]
    dead = np.unique(found[base_ids[found] == gone])
    for known in old.tombstones:
        dead = dead[~layers.held(known, dead)]
    _, there = layers.named(old.named, gone)
    frame = stored.frame(fresh) if header.kind != FLAT else (None, None)
    lists = kinds.assign(frame[0], vectors, frame[1])
    new = index_delta.put(ids, vectors.reshape(len(ids), header.dim), lists, gone[len(ids) :][there[len(ids) :]], dead)
    staying = layers.staying(old.sizes, len(gone) + len(dead))
    stored.verify(at, {name: header.files[name] for name in map(index_delta.name, range(staying, header.layers))})
    old.merged(staying, header.dim, new).write(fresh, staying)
    for name in map(index_delta.name, range(staying)):
        link(at / name, fresh / name)
    items = header.delta_items - int(there.sum()) + len(ids)
    return _seal(fresh, replace(header, layers=staying + 1, delta_items=items, tombstones=header.tombstones + len(dead)))


def _seal(fresh: Path, header: IndexHeader) -> IndexHeader:
    """Write the header, last, with the sums of its layers: the newest is hashed, the others are known."""
    items = header.base_items - header.tombstones + header.delta_items
    if not items:
        raise NothingLeftError("nothing would be left of the index", action="publish the items that are still sold")
    own = _layer_files(header)
    files = _base_files(header) | {name: header.files[name] for name in own[:-1]} | {own[-1]: file_sha256(fresh / own[-1])}
    whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    header = replace(header, items=items, files=files, sha256=whole)
    header.write(fresh)
    return header


def _layer_files(header: IndexHeader) -> list[str]:
    return [index_delta.name(number) for number in range(header.layers)]


def _base_files(header: IndexHeader) -> dict[str, str]:
    return {name: found for name, found in header.files.items() if not index_delta.is_layer(name)}
