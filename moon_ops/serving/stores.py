"""What a service reads beside its own memory, and may lose while it runs: the lake, and Feast's online store.

Searches go on without the lake: they answer with ids and scores, and say what is lacking. What is away is told at ``/ready`` and counted.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from moon_ops.errors import MoonError, ServiceError, in_a_line
from moon_ops.lake import changes
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of

log = logging.getLogger(__name__)
LAKE, ONLINE = "lake", "online store"
SLOW_SECONDS, AGAIN_SECONDS = 0.5, 5.0  # a store that takes longer to fail is asked that much later: Redis takes ten seconds, and a thread
SHOWN = ("title", "category", "price", "image_ids")  # of an item


class Stores:
    """Which of the two is away, and why, as the last who asked found. May be used from many threads."""

    def __init__(self) -> None:
        self.lost: dict[str, ServiceError] = {}
        self.faults: dict[str, int] = {LAKE: 0, ONLINE: 0}  # questions without an answer, since the process began
        self._again: dict[str, float] = {}  # when to ask a store again that is away and slow to say so

    @contextlib.contextmanager
    def asked(self, store: str) -> Iterator[None]:
        """Note how a question to a store ends; :class:`ServiceError` if it was not answered, and at once if one took long to fail just now.

        The fault is logged once.
        """
        known, began = self.lost.get(store), time.monotonic()
        if known is not None and began < self._again.get(store, 0.0):
            self.faults[store] += 1
            raise ServiceError(known.problem, action=known.action)
        if store in self._again:
            self._again[store] = began + AGAIN_SECONDS  # of many requests one asks
        try:
            yield
        except ServiceError as fault:
            self.faults[store] += 1
            if store not in self.lost:
                log.error("the %s is away: %s", store, fault)
            self.lost[store] = fault
            if time.monotonic() - began > SLOW_SECONDS:
                self._again[store] = time.monotonic() + AGAIN_SECONDS
            raise
        self._again.pop(store, None)
        if self.lost.pop(store, None) is not None:
            log.warning("the %s answers again", store)

    def why(self) -> str:
        """What is away, in one line; empty if nothing is."""
        return "; ".join(fault.problem for fault in list(self.lost.values()))

    def titles(self, lake: Lake, item_ids: Sequence[int], when: dt.datetime) -> tuple[dict[int, dict[str, Any]], str]:
        """What is shown of the items on sale at ``when``, by id; and why the lake could not be asked, empty if it was."""
        try:
            with self.asked(LAKE):
                return titles(lake, item_ids, when), ""
        except ServiceError as fault:
            return {}, f"items are without title, price and pictures: {fault.problem}"


@contextlib.contextmanager
def reading(lake: Lake) -> Iterator[None]:
    """Whatever Lance says of a lake that is not there, as :class:`ServiceError`."""
    try:
        yield
    except ServiceError:
        raise
    except MoonError as gone:  # a table: what is served was made of it
        raise ServiceError(
            f"the lake at {lake.uri} cannot be read ({gone.problem})", action="bring it back, or correct MOON_LAKE"
        ) from gone
    except (OSError, ValueError) as fault:
        problem = f"the lake at {lake.uri} cannot be read ({in_a_line(fault)})"
        raise ServiceError(problem, action="bring it back, or correct MOON_LAKE") from fault


def titles(lake: Lake, item_ids: Sequence[int], when: dt.datetime, columns: Sequence[str] = SHOWN) -> dict[int, dict[str, Any]]:
    """Title, category, price and pictures of the items on sale at ``when``, by key; of one learned later, as it was learned.

    Raises :class:`ServiceError` without a lake.
    """
    if not item_ids:
        return {}
    with reading(lake):
        wanted = pa.array(item_ids, pa.int64())
        rows = changes.rows_of(lake.open("items"), "item_id", wanted, list(dict.fromkeys([*VALIDITY, *columns])))
        present = max([when, *rows["created"].to_pylist()])  # a publication shows what the lake has learned, whatever the clock says
        return {row["item_id"]: row for row in active_as_of(rows, present).to_pylist()}
