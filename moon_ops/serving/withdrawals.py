"""Items that were withdrawn since the publication that is served: learned from the lake in the background, and left out of every search."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable

from moon_ops.embeddings import handover
from moon_ops.embeddings.handover import Since
from moon_ops.errors import MoonError, ServiceError
from moon_ops.lake import changes
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of
from moon_ops.publication import marks
from moon_ops.serving.stores import LAKE, Stores, reading
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
EVERY_SECONDS = 2.0  # between looks; one costs what has changed since the last
LAST_SECONDS = 5.0  # that a look may take when the service ends


class Withdrawals:
    """Knows what is not sold any more. ``gone`` may be read from many threads."""

    def __init__(self, settings: Settings, stores: Stores) -> None:
        self.settings, self.stores = settings, stores
        self.gone: frozenset[int] = frozenset()  # keys of items; those that have left the index meanwhile stay, and do no harm
        self._since: Since | None = None
        self._encoder: int | None = None
        self._said = ""
        self._asking: float | None = None  # since when the lake has owed an answer
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, encoder: Callable[[], int | None]) -> None:
        """Look in the background until :meth:`stop`; ``encoder`` is the one that is served, None while there is none."""
        self._thread = threading.Thread(target=self._follow, args=(encoder,), name="learn-withdrawals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the present look: an interpreter that ends under it would crash."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)

    @property
    def late(self) -> float:
        """Seconds since which the lake has owed an answer: a store that hangs is no fault for minutes."""
        asking = self._asking
        return 0.0 if asking is None else time.monotonic() - asking

    def look(self, encoder: int, now: dt.datetime) -> None:
        """Learn what has been withdrawn, or come back, since the last look, or since the encoder's index was published."""
        if self._since is None or encoder != self._encoder:
            self._since, self._encoder = marks.since_of(self.settings, f"index-items-v{encoder}", full=False), encoder
        with self.stores.asked(LAKE), reading(self.settings.lake):
            sold = self.settings.lake.open("items")
            mark, now = changes.newest(sold), marks.not_before(self._since, now)
            touched = handover.touched(sold, "item_id", self._since, now)
            if len(touched):
                rows = changes.rows_of(sold, "item_id", touched, VALIDITY)
                present = max([now, *rows["created"].to_pylist()])  # what was learned is there, whatever the clock says
                active = active_as_of(rows, present)["item_id"]
                ids = set(touched.to_pylist())
                self.gone = (self.gone - ids) | (ids - set(active.to_pylist()))  # one assignment: a request sees the old or the new
        self._since = Since(mark, now)

    def note(self, item: int) -> None:
        """An item has been withdrawn through this service: its searches need not wait for the next look."""
        self.gone = self.gone | {item}

    def _follow(self, encoder: Callable[[], int | None]) -> None:
        """While the lake is away, what is known stays."""
        while True:
            served, self._asking = encoder(), time.monotonic()
            try:
                if served is not None:
                    self.look(served, dt.datetime.now(dt.UTC))
                self._said = ""
            except ServiceError:
                pass  # the stores tell it
            except Exception as fault:  # searches go on with what is known
                if str(fault) != self._said:
                    log.error("withdrawn items are not learned: %s", fault, exc_info=not isinstance(fault, MoonError))
                self._said = str(fault)
            self._asking = None
            if self._stop.wait(EVERY_SECONDS):
                return
