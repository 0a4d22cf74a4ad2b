"""An index in several parts behind one search, merged exactly. N items, D dimensions, S shards, B queries.

A shard is an index of its own (``index.py``). Items are dealt out by a mix of their id, so shards are about as large as each other whatever
ids a shop gives next, and everybody knows an item's shard by the number of shards alone. An index of one shard has the files of
``index.py``; one of several is a directory with the same header and a directory for each shard that has items:

=======================  ==========================================================================================
``index.json``           the header of the whole: sums of the shards', and the sha256 of each file below
``0/``, ``1/``, …        a generation of ``index.py`` each
=======================  ==========================================================================================

A generation is built aside, with links to what has not changed, and takes the old one's place in one step; one shard at a time is in
memory. Merging is by cosine, of equal ones the greater id first, as an exact scan over ascending ids has them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from moon_ops.embeddings import index, index_files
from moon_ops.embeddings.among import Among
from moon_ops.embeddings.generations import fresh_directory, held, settled, swap
from moon_ops.embeddings.index import HEADER, Ids, IndexHeader, ItemIndex, NothingLeftError, Vectors
from moon_ops.errors import StageError
from moon_ops.files import link
from moon_ops.inputs.contract import file_sha256
from moon_ops.pieces import let_go, spans, spilled

Found = tuple[Ids, Vectors]  # item ids [B, k] and cosines [B, k]


class ItemShards:
    """Those shards of an index that are in memory, behind one search; all of them, or some. May be searched from many threads.

    ``header`` is the whole index's, ``shards`` has no entry for a shard without items, ``held`` are the numbers of those that are here.
    """

    def __init__(self, header: IndexHeader, shards: Mapping[int, ItemIndex], held: Collection[int]) -> None:
        self.header, self.shards, self.held = header, dict(shards), frozenset(held)

    @classmethod
    def open(cls, directory: Path, previous: ItemShards | None = None, only: Collection[int] | None = None) -> ItemShards:
        """Read the shards (``only`` these, None: all) and check them against their header; bases that ``previous`` has are kept.

        :class:`StageError` if there is no index, or a shard is asked for that it does not have.
        """
        known = {} if previous is None else previous.shards

        def read(at: Path) -> ItemShards:
            header = IndexHeader.read(at)
            wanted = range(header.shards) if only is None else sorted(only)
            if beyond := [number for number in wanted if number >= header.shards]:
                told = f"shard {beyond[0]} is asked for, the index at {directory} has {header.shards}"
                raise StageError(told, action="name shards from 0 on, or publish with more (MOON_INDEX_SHARDS)")
            places = {n: place for n, place in _places(at, header).items() if n in wanted}
            if header.shards > 1:
                index_files.verify(at, {name: header.files[name] for name in (f"{n}/{HEADER}" for n in places)})
            return cls(header, {n: ItemIndex.read(place, known.get(n)) for n, place in places.items()}, wanted)

        try:
            return settled(directory, read)
        except FileNotFoundError as missing:
            raise StageError(f"there is no index at {directory}: {missing}", action="run `moon publish` first") from missing

    @property
    def missing(self) -> frozenset[int]:
        """The shards that are not here."""
        return frozenset(range(self.header.shards)) - self.held

    def search(self, vectors: Vectors, k: int, contract_id: str, only: Collection[int] | None = None) -> Found:
        """The k best of all shards that are here, or of ``only`` some of them: as :meth:`ItemIndex.search`."""
        found = [shard.search(vectors, k, contract_id) for number, shard in self.shards.items() if only is None or number in only]
        return merged(found, len(vectors), k)

    def among(self, ids: Ids) -> AmongShards:
        """Those of the items ``ids`` (ascending) that are here."""
        return AmongShards({number: Among(shard, ids) for number, shard in self.shards.items()})

    def holds(self, item_id: int) -> bool:
        """Whether the item can be found here."""
        return any(shard.holds(item_id) for shard in self.shards.values())

    def items(self) -> Ids:
        """The ids of all items that can be found here, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *(shard.items() for shard in self.shards.values())]))


class AmongShards:
    """Some of the items of shards, by the number of their shard. May be searched from many threads."""

    def __init__(self, shards: Mapping[int, Among]) -> None:
        self.shards = shards

    def search(self, vectors: Vectors, k: int, contract_id: str, only: Collection[int] | None = None) -> Found:
        """As :meth:`ItemShards.search`."""
        found = [some.search(vectors, k, contract_id) for number, some in self.shards.items() if only is None or number in only]
        return merged(found, len(vectors), k)


def merged(found: Sequence[Found], queries: int, k: int) -> Found:
    """The k best of what several parts have found, of different items: ids [B, k] and cosines [B, k]; -1 where there are no more."""
    if len(found) == 1 and found[0][0].shape[1] == k:
        return found[0]
    nothing = np.full((queries, k), -1), np.full((queries, k), -np.inf, np.float32)
    ids, cosines = (np.concatenate([*(part[n] for part in found), nothing[n]], 1) for n in (0, 1))
    order = np.lexsort((-ids, -cosines), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(cosines, order, 1)


def shard_of(ids: Ids, shards: int) -> Ids:
    """The shard of each item: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA) over its id, modulo S."""
    mixed = np.asarray(ids).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(shards)).astype(np.int64)


def each(directory: Path, only: Collection[int] | None = None) -> Iterator[ItemIndex]:
    """The shards one after the other, so that one is in memory at a time; of a publication meanwhile the later ones are the newer."""
    for number in range(_header(directory).shards):
        if only is None or number in only:
            yield from ItemShards.open(directory, only=[number]).shards.values()


def holds(directory: Path, item_id: int) -> bool:
    """Whether the item can be found; its own shard is opened alone."""
    own = shard_of(np.array([item_id]), _header(directory).shards)
    return any(shard.holds(item_id) for shard in each(directory, own.tolist()))


def verified(directory: Path) -> IndexHeader:
    """The header, after each file was compared with it; shards are not taken into memory for it."""

    def read(at: Path) -> IndexHeader:
        header = IndexHeader.read(at)
        if header.shards == 1:
            return ItemIndex.read(at).header
        index_files.verify(at, header.files)
        return header

    try:
        return settled(directory, read)
    except FileNotFoundError as missing:
        raise StageError(f"there is no index at {directory}: {missing}", action="run `moon publish` first") from missing


def build(directory: Path, ids: Ids, vectors: Vectors, contract_id: str, *, shards: int = 1, memory: int | None = None) -> IndexHeader:
    """:func:`.index.build`, in so many shards. ``memory`` (bytes) is of each: a process is meant to hold one.

    The vectors [N, D] may lie in a file: those of a shard are copied, into a file where they are many.
    """
    if shards == 1:
        return index.build(directory, ids, vectors, contract_id, memory=memory)
    if not len(ids):
        raise StageError("there are no vectors to index", action="run `moon embed` first")
    own = shard_of(ids, shards)
    with fresh_directory(directory) as fresh:
        for number in range(shards):
            if len(rows := np.flatnonzero(own == number)):
                (fresh / str(number)).mkdir()
                index.write_base(fresh / str(number), ids[rows], _copied(vectors, rows), contract_id, memory)
        header = _seal(fresh, shards)
        with held(directory):
            swap(fresh, directory)
    return header


def update(directory: Path, ids: Ids, vectors: Vectors, removed: Ids, contract_id: str, *, memory: int | None = None) -> IndexHeader:
    """:func:`.index.update` of the shards that it concerns; the others are linked."""
    if not (directory / HEADER).is_file() or IndexHeader.read(directory).shards == 1:
        return index.update(directory, ids, vectors, removed, contract_id)

    def write(number: int, at: Path | None, fresh: Path) -> None:
        mine, gone = (shard_of(some, shards) == number for some in (ids, removed))
        if at is None and mine.any():
            index.write_base(fresh, ids[mine], vectors[mine], contract_id, memory)
        elif at is not None and (mine.any() or gone.any()):
            index.write_update(at, fresh, ids[mine], vectors[mine], removed[gone], contract_id)
        elif at is not None:
            _link(at, fresh)

    shards = IndexHeader.read(directory).shards
    return _rewritten(directory, write)


def tend(directory: Path, *, memory: int | None = None) -> IndexHeader:
    """Compact the index, or those of its shards, of which :func:`.index.compaction_due` says so."""
    header = IndexHeader.read(directory)
    if header.shards == 1:
        return index.compact(directory, memory=memory) if index.compaction_due(header) else header
    if not any(index.compaction_due(IndexHeader.read(at)) for at in _places(directory.resolve(), header).values()):
        return header

    def write(_: int, at: Path | None, fresh: Path) -> None:
        if at is not None and index.compaction_due(IndexHeader.read(at)):
            index.write_compacted(at, fresh, memory)
        elif at is not None:
            _link(at, fresh)

    return _rewritten(directory, write)


class _Write(Protocol):
    """Writes a shard's next generation, from the one there ``at``, if there is one."""

    def __call__(self, number: int, at: Path | None, fresh: Path, /) -> None: ...


def _rewritten(directory: Path, write: _Write) -> IndexHeader:
    """The next generation, each shard ``write``\\ n anew; one of which nothing would be left has no directory any more."""
    with held(directory) as at, fresh_directory(directory) as fresh:
        if at is None:
            raise StageError(f"there is no index at {directory} to update", action="run `moon publish` first")
        old = IndexHeader.read(at)
        places = _places(at, old)
        for number in range(old.shards):
            (fresh / str(number)).mkdir()
            try:
                write(number, places.get(number), fresh / str(number))
            except NothingLeftError:
                shutil.rmtree(fresh / str(number))
        header = _seal(fresh, old.shards)
        swap(fresh, directory)
    return header


def _seal(fresh: Path, shards: int) -> IndexHeader:
    """Write the header of the whole over the shards that are there, last; empty directories are taken away."""
    for at in list(fresh.iterdir()):
        if not any(at.iterdir()):
            at.rmdir()
    known = {n: IndexHeader.read(fresh / str(n)) for n in range(shards) if (fresh / str(n)).is_dir()}
    if not known:
        raise NothingLeftError("nothing would be left of the index", action="publish the items that are still sold")
    files = {f"{n}/{HEADER}": file_sha256(fresh / str(n) / HEADER) for n in known}
    files |= {f"{n}/{name}": found for n, header in known.items() for name, found in header.files.items()}
    headers = list(known.values())
    largest = max(headers, key=lambda header: header.items)
    counts = {name: sum(getattr(h, name) for h in headers) for name in ("items", "base_items", "delta_items", "tombstones")}
    whole = IndexHeader(
        contract_id=largest.contract_id,
        kind="+".join(sorted({header.kind for header in headers})),
        reason=f"{shards} shards, the largest of {largest.items:,} items: {largest.reason}",
        dim=largest.dim,
        sha256=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        probes=max(header.probes for header in headers),
        recall=min(header.recall for header in headers),
        files=files,
        shards=shards,
        **counts,
    )
    whole.write(fresh)
    return whole


def _places(at: Path, header: IndexHeader) -> dict[int, Path]:
    """The directory of each shard that has items."""
    if header.shards == 1:
        return {0: at}
    return {number: at / str(number) for number in range(header.shards) if f"{number}/{HEADER}" in header.files}


def _header(directory: Path) -> IndexHeader:
    try:
        return settled(directory, IndexHeader.read)
    except FileNotFoundError as missing:
        raise StageError(f"there is no index at {directory}: {missing}", action="run `moon publish` first") from missing


def _link(at: Path, fresh: Path) -> None:
    for path in at.iterdir():
        link(path, fresh / path.name)


def _copied(vectors: Vectors, rows: Ids) -> Vectors:
    """Those rows, copied piece by piece."""
    found = spilled(len(rows), vectors.shape[1])
    for span in spans(len(rows)):
        found[span] = vectors[rows[span]]
        let_go(vectors)
        let_go(found)
    return found
