"""Item cards: what a search shows of an item and filters by, found by its id in files that are mapped into memory.

Cards are a directory that is never changed; a newer generation takes its place in one step, and a reader keeps what it has opened:

===============  ===================================================================================================
``cards.json``   the header
``base.arrow``   cards, ascending by item id, in batches of an Arrow file that is read where it lies
``base.json``    the brands and categories that the cards of the base name by number
``delta.*``      likewise of the items that have changed since, in layers (``delta-1.*``, …; ``layers.py``)
``gone.npy``     the items of the base that are gone, or newer in ``delta.*``
``gone-1.npy``   the items that ``delta-1.*`` takes away from the base and the layers before it, …
===============  ===================================================================================================

Whatever reads them shares the pages with all other processes of the machine. Nothing here knows where items come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops.embeddings import card_files, layers
from moon_ops.embeddings.card_files import COLUMNS, NONE, CardFile, Wanted
from moon_ops.embeddings.generations import fresh_directory, held, settled, swap
from moon_ops.errors import StageError
from moon_ops.files import link

HEADER, VERSION = "cards.json", 1
BATCH = 65_536  # cards of a batch: what is in memory when a base is written
CHANGED_AT_MOST, SMALL = 0.1, 1000  # of the base's cards may be gone or newer, or so many: then a new base is due
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class CardsHeader:
    """How many ``items`` have a card, and how many are in the ``base``, in the ``layers`` over it (``delta``), and ``gone`` from the base
    or newer.
    """

    version: int
    items: int
    base: int
    delta: int
    gone: int
    layers: int = 1

    @classmethod
    def read(cls, at: Path) -> CardsHeader:
        """The header in the directory ``at``; :class:`StageError` if this version did not write it."""
        content = json.loads((at / HEADER).read_text())
        if set(content) | {"layers"} != set(cls.__dataclass_fields__) or content["version"] != VERSION:
            raise StageError(f"{at / HEADER} was written by another version of moon_ops", action="run `moon publish --full`")
        return cls(**content)

    def write(self, at: Path) -> None:
        """Write it into the directory ``at``; the usual one layer is left out, as older versions know it."""
        (at / HEADER).write_text(json.dumps({k: v for k, v in asdict(self).items() if (k, v) != ("layers", 1)}) + "\n")

    @property
    def crowded(self) -> bool:
        """Whether a new base is due."""
        return self.delta + self.gone > max(SMALL, CHANGED_AT_MOST * self.base)


class Cards:
    """Opened cards. May be asked from many threads."""

    def __init__(self, header: CardsHeader, base: CardFile, later: list[CardFile], named: tuple[Ids, Ids]) -> None:
        self.header, self._base, self._layers = header, base, later
        self._named, self._owner = named  # what changed since the base, ascending, and the layer that has its card; -1: it is gone

    def __len__(self) -> int:
        return self.header.items

    def get(self, items: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The cards of those ``items`` that have one, by id; a card has the columns of :data:`COLUMNS`."""
        found = ((item, self._card(item)) for item in items)
        return {item: card for item, card in found if card is not None}

    def _card(self, item: int) -> dict[str, Any] | None:
        at = int(np.searchsorted(self._named, item))
        if at == len(self._named) or self._named[at] != item:
            return self._base.card(item)
        owner = int(self._owner[at])
        return None if owner < 0 else self._layers[owner].card(item)

    def matching(self, wanted: Wanted) -> Ids:
        """The items, ascending, that are as ``wanted``."""
        base = self._base.matching(wanted)
        place, keep = np.searchsorted(base, self._named), np.ones(len(base) + 1, bool)
        there = np.append(base, NONE)[place] == self._named
        keep[place[there]] = False
        found = [base[keep[:-1]]]
        for number, layer in enumerate(self._layers):
            own = layer.matching(wanted)
            found.append(own[self._owner[np.searchsorted(self._named, own)] == number])
        return np.sort(np.concatenate(found), kind="stable") if any(map(len, found[1:])) else found[0]

    @classmethod
    def open(cls, directory: Path) -> Cards:
        """Map cards into memory; :class:`StageError` if there are none."""
        try:
            return settled(directory, cls._map)
        except FileNotFoundError as missing:
            raise StageError(f"there are no item cards at {directory}: {missing}", action="run `moon publish`") from missing

    @classmethod
    def _map(cls, at: Path) -> Cards:
        header = CardsHeader.read(at)
        later = [card_files.read(at, _layer(number)) for number in range(header.layers)]
        return cls(header, card_files.read(at, "base"), later, layers.newest(_named(at, later)))


def build(directory: Path, chunks: Iterable[pa.Table]) -> CardsHeader:
    """Make cards of items with :data:`COLUMNS`, in chunks of ascending ids, one of which is in memory at a time."""
    with fresh_directory(directory) as fresh:
        count = card_files.write(fresh, "base", (batch for chunk in chunks for batch in _sliced(chunk)))
        card_files.write(fresh, "delta", ())
        np.save(fresh / _gone(0), np.zeros(0, np.int64))
        header = CardsHeader(VERSION, count, count, 0, 0)
        header.write(fresh)  # last
        with held(directory):
            swap(fresh, directory)
    return header


def update(directory: Path, rows: pa.Table, removed: Ids) -> CardsHeader:
    """Put the cards of new and changed items (with :data:`COLUMNS`) over those that are there, and take the items ``removed`` away.

    Costs what is new, and at times the layers that are merged with it; of the base only ids are looked up.
    """
    with held(directory) as at, fresh_directory(directory) as fresh:
        if at is None:
            raise StageError(f"there are no item cards at {directory} to update", action="run `moon publish` first")
        old = CardsHeader.read(at)
        later = [card_files.read(at, _layer(number)) for number in range(old.layers)]
        named = _named(at, later)
        put = np.sort(rows["item_id"].to_numpy())
        touched = np.union1d(put, removed)
        known, there = layers.named(named, touched)
        staying = layers.staying([len(some) + len(taken) for some, taken in named], len(touched))
        taken = _write_layer(fresh, staying, rows, [*named[staying:], (put, np.setdiff1d(removed, put))], later[staying:])
        shared = ["base.arrow", "base.json", *(name for number in range(staying) for name in _files(number))]
        for name in shared:
            link(at / name, fresh / name)
        base = card_files.read(at, "base")
        if not staying:  # as older versions have it: the base's cards that are gone or newer, not what else was taken away
            changed = np.unique(np.concatenate([touched, *(some for pair in named for some in pair)]))
            taken = changed[base.held(changed)]
        np.save(fresh / _gone(staying), taken)
        gone, delta = old.gone + int(base.held(touched[~known]).sum()), old.delta - int(there.sum()) + len(put)
        header = CardsHeader(VERSION, old.base - gone + delta, old.base, delta, gone, staying + 1)
        header.write(fresh)  # last
        swap(fresh, directory)
    return header


def _write_layer(fresh: Path, number: int, rows: pa.Table, named: list[tuple[Ids, Ids]], merged: list[CardFile]) -> Ids:
    """The layer of new ``rows`` and of those cards of the ``merged`` ones that are still the newest; which items it takes away."""
    ids, owner = layers.newest(named)
    parts = [card_files.shown(file, ids[owner == place]) for place, file in enumerate(merged)]
    schema = card_files.shown(CardFile([], {"brand": [], "category": []}), ids[:0]).schema
    known = pa.concat_tables([*parts, rows.select(COLUMNS).cast(schema)])
    card_files.write(fresh, _layer(number), _sliced(known.take(pc.sort_indices(known["item_id"]))))
    return ids[owner < 0]


def _named(at: Path, later: list[CardFile]) -> list[tuple[Ids, Ids]]:
    """What each layer puts, and what it takes away."""
    return [(file.ids(), np.load(at / _gone(number))) for number, file in enumerate(later)]


def _layer(number: int) -> str:
    return f"delta-{number}" if number else "delta"


def _gone(number: int) -> str:
    return f"gone-{number}.npy" if number else "gone.npy"


def _files(number: int) -> list[str]:
    return [f"{_layer(number)}.arrow", f"{_layer(number)}.json", _gone(number)]


def _sliced(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, BATCH):
        yield table.slice(start, BATCH)
