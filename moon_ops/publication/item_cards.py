"""Hand over the cards of the items on sale: what a search shows and filters by, of the same time as the index beside them."""

from __future__ import annotations

import datetime as dt
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from moon_ops.embeddings import cards, handover
from moon_ops.embeddings.cards import Cards, CardsHeader
from moon_ops.embeddings.generations import turn
from moon_ops.errors import MoonError
from moon_ops.lake import changes
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of
from moon_ops.publication.marks import not_before, remember, since_of
from moon_ops.publication.places import cards_place, handed
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
UNREADABLE = (MoonError, OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile)  # what opening damaged cards says


def publish(settings: Settings, encoder: int, now: dt.datetime, *, full: bool) -> int:
    """Refresh the cards by the items that are new, changed or gone; how many there are. Cards that cannot be read are made anew."""
    place = cards_place(settings, encoder)
    with turn(handed(settings, place.name)):
        sold = settings.lake.open("items")
        mark, since = changes.newest(sold), since_of(settings, place.name, full=full)
        now = not_before(since, now)
        header = None
        try:
            if since.when is not None and not CardsHeader.read(place).crowded:
                header = _refreshed(place, sold, handover.touched(sold, "item_id", since, now), now)
        except FileNotFoundError:
            pass  # an older version has published, or a machine without them
        except UNREADABLE as fault:
            log.warning("%s cannot be read (%s): it is made anew", place, fault)
        if header is None or header.crowded:
            header = cards.build(place, _chunks(sold, now))
        remember(settings, place.name, mark, now)
        return header.items


def opened(settings: Settings, encoder: int) -> Cards | None:
    """The cards that were published; None if there are none that can be read."""
    try:
        return Cards.open(cards_place(settings, encoder))
    except UNREADABLE as fault:
        log.warning("titles and prices are read from the lake (%s)", fault)
        return None


def _refreshed(place: Path, sold: lance.LanceDataset, ids: pa.Array, now: dt.datetime) -> CardsHeader:
    if not len(ids):
        return CardsHeader.read(place)
    rows = active_as_of(changes.rows_of(sold, "item_id", ids, list(dict.fromkeys([*VALIDITY, *cards.COLUMNS]))), now)
    return cards.update(place, rows, np.setdiff1d(ids.to_numpy(), rows["item_id"].to_numpy()))


def _chunks(sold: lance.LanceDataset, now: dt.datetime) -> Iterator[pa.Table]:
    """The items on sale, ascending, some at a time."""
    active = active_as_of(sold.to_table(columns=[*VALIDITY, "_rowoffset"]), now)["_rowoffset"].to_numpy()
    for start in range(0, len(active), cards.BATCH):
        some = active[start : start + cards.BATCH]
        order = np.argsort(some)
        rows = sold.take(some[order].tolist(), columns=list(cards.COLUMNS))  # in the order in which they lie
        yield rows.take(pa.array(np.argsort(order)))
