"""The parts of indexes that this process holds in memory, for its own searches and for those of other services.

What is held of one index is opened once, whoever asks: the release that is served, a candidate beside it, another service. One that others
ask for stays for a minute after the last question, so that they find the index of a release which this process has left already; they
ask every few seconds as long as they need it. One that is not here is opened when it is first asked for.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Collection
from dataclasses import dataclass

from moon_ops.embeddings.cards import Cards, Wanted
from moon_ops.embeddings.index import IndexHeader, Vectors
from moon_ops.embeddings.index_shards import AmongShards, Found, ItemShards
from moon_ops.errors import MoonError, ServiceError, StageError
from moon_ops.publication import item_cards, places
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
FILTERS_KEPT = 16  # each some megabytes in a catalogue of a million
IDLE_SECONDS = 60.0  # after which one is let go: who needs it asks every five
TEND_SECONDS = 1.0  # between looks for newer publications, and for what nobody asks for any more
MOST = 3  # indexes that are kept for others
Key = tuple[int, int]  # encoder, and numbers of each vector (0: all)


@dataclass(frozen=True)
class IndexName:
    """Which index: parts of two of them are never merged. ``dimensions``: the first numbers of each vector, 0 for all of them."""

    encoder: int
    dimensions: int
    contract_id: str
    shards: int

    @property
    def told(self) -> str:
        """In words."""
        first = f", the first {self.dimensions} numbers" if self.dimensions else ""
        return f"the index of encoder {self.encoder}{first} in {self.shards} shards, contract {self.contract_id}"


@dataclass(frozen=True)
class Question:
    """Query vectors [B, D] and how many items each wants, of those that are as ``wanted``."""

    vectors: Vectors
    k: int
    wanted: Wanted | None = None


class Part:
    """What this process holds of one publication's index, with the cards by which it is filtered. Never changed; for many threads."""

    def __init__(self, settings: Settings, key: Key, previous: Part | None = None) -> None:
        """Open it; what has not changed since ``previous`` is kept. :class:`MoonError` if there is none that can be read."""
        self.settings, self.key, self.links = settings, key, self._links(settings, key)  # before what they lead to
        place = places.index_place(settings, *key)
        self.index: ItemShards = ItemShards.open(place, None if previous is None else previous.index, settings.held_shards)
        self.cards = item_cards.opened(settings, key[0])
        # of no method: what refers to itself is left to the collector, which overlooks what was there when the service began
        self._among = functools.lru_cache(FILTERS_KEPT)(functools.partial(_matching, self.index, self.cards))

    @property
    def name(self) -> IndexName:
        """Which index it is a part of."""
        return IndexName(*self.key, self.index.header.contract_id, self.index.header.shards)

    def stale(self) -> bool:
        """Whether there is a newer publication."""
        return self.links != self._links(self.settings, self.key)

    def among(self, wanted: Wanted) -> AmongShards:
        """The items here that are as ``wanted``; :class:`StageError` for a publication of before, which has no cards to tell by."""
        return self._among(wanted)

    def find(self, asked: Question, contract_id: str, only: Collection[int] | None = None) -> Found:
        """The nearest items here, or in ``only`` some of the shards: as :meth:`ItemShards.search`."""
        searched = self.index if asked.wanted is None or not self.index.shards else self.among(asked.wanted)
        return searched.search(asked.vectors, asked.k, contract_id, only)

    @staticmethod
    def _links(settings: Settings, key: Key) -> list[str]:
        return [str(link.resolve()) for link in (places.index_place(settings, *key), places.cards_place(settings, key[0]))]


def _matching(index: ItemShards, cards: Cards | None, wanted: Wanted) -> AmongShards:
    if cards is None:
        raise StageError("there are no item cards to filter by", action="run `moon publish`, or ask without filters")
    return index.among(cards.matching(wanted))


@dataclass
class _Kept:
    part: Part
    asked: float


class Shelf:
    """The parts that are in memory. May be asked from many threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._here: weakref.WeakValueDictionary[Key, Part] = weakref.WeakValueDictionary()  # whoever uses them
        self._turns: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()
        self._kept: dict[Key, _Kept] = {}  # for others
        self._opening: set[Key] = set()
        self._faults: dict[Key, str] = {}
        self._tending = False

    def opened(self, encoder: int, dimensions: int) -> Part:
        """The newest publication; what is in memory already, or of the one before it, is not read again. As :class:`Part`."""
        key = encoder, dimensions
        with self._turns.setdefault(key, threading.Lock()):
            here = self._here.get(key)
            if here is None or here.stale():
                self._here[key] = here = Part(self.settings, key, here)
            return here

    def asked(self, name: IndexName) -> Part:
        """The part for another service; :class:`ServiceError` while it is being opened, and if this process has another index than that."""
        key = name.encoder, name.dimensions
        with self._lock:
            part = self._here.get(key)
            if part is None:
                self._begin(name)
            else:
                self._kept[key] = _Kept(part, time.monotonic())
                self._begin_tending()
        if part is None:
            fault = self._faults.get(key)
            told = f"{name.told} is being opened" if fault is None else f"{name.told} cannot be opened: {fault}"
            raise ServiceError(told, action="ask again in some seconds")
        if part.name != name:
            raise ServiceError(f"this service has {part.name.told}, not {name.told}", action="ask again when both have one publication")
        return part

    def _begin(self, name: IndexName) -> None:
        """Open it in the background, if it is the one that lies there: a question for another costs nothing."""
        key = name.encoder, name.dimensions
        try:
            there = IndexHeader.read(places.index_place(self.settings, *key))
        except (OSError, MoonError, ValueError, TypeError) as fault:
            raise ServiceError(f"{name.told} is not here: {fault}", action="ask again when it has been published") from fault
        if (there.contract_id, there.shards) != (name.contract_id, name.shards):
            has = IndexName(*key, there.contract_id, there.shards)
            raise ServiceError(f"this service has {has.told}, not {name.told}", action="ask again when both have one publication")
        if key not in self._opening:
            self._opening.add(key)
            threading.Thread(target=self._open, args=(key,), name="open-part", daemon=True).start()

    def _open(self, key: Key) -> None:
        try:
            part = self.opened(*key)
            with self._lock:
                self._kept[key] = _Kept(part, time.monotonic())
                self._faults.pop(key, None)
                self._begin_tending()
            log.info("%s is opened for other services", part.name.told)
        except Exception as fault:  # told to who asks next, and tried again then
            self._faults[key] = str(fault)
            log.error(
                "the index of encoder %d cannot be opened for other services: %s", key[0], fault, exc_info=not isinstance(fault, MoonError)
            )
        finally:
            self._opening.discard(key)

    def _begin_tending(self) -> None:
        if not self._tending:
            self._tending = True
            self._later()

    def _later(self) -> None:
        timer = threading.Timer(TEND_SECONDS, self.tend)
        timer.daemon = True
        timer.start()

    def tend(self) -> None:
        """Open newer publications of what is kept for others, and let go what nobody asks for; again in a moment, while there is some."""
        now = time.monotonic()
        with self._lock:
            lately = sorted(self._kept, key=lambda key: -self._kept[key].asked)[:MOST]
            self._kept = {key: self._kept[key] for key in lately if now - self._kept[key].asked <= IDLE_SECONDS}
            kept, self._tending = list(self._kept), bool(self._kept)
        for key in kept:
            try:
                fresh = self.opened(*key)
            except Exception as fault:  # what is there goes on; the follower of the release that is served tells it, too
                log.debug("a newer publication cannot be opened: %s", fault)
                continue
            with self._lock:
                if key in self._kept:
                    self._kept[key].part = fresh
        if kept:
            self._later()
