"""Clocks that are wrong: an item that was learned ahead of this clock, because that one ran ahead, or this one was set back.

The lake's time never runs back. What is brought last is what holds, and what was learned is there, whatever the clock says now.
"""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.lake import lookups
from moon_ops.lake.lake import Lake

SKEW = dt.timedelta(hours=1)  # by which clocks of several machines may differ without a word
TICK = dt.timedelta(microseconds=1)


def after(learned: dt.datetime | None, now: dt.datetime) -> dt.datetime:
    """When what is brought ``now`` is learned: at any rate after what it replaces, which was ``learned`` before."""
    return now if learned is None or learned <= now else learned + TICK


def present(lake: Lake, now: dt.datetime) -> dt.datetime:
    """The time as of which readers are to be given the lake: ``now``, or the moment at which its newest item or user was learned."""
    learned = [pc.max(_after(lake, name, ["created"], now)["created"]).as_py() for name in ("items", "users") if lake.exists(name)]
    return max([now, *(moment for moment in learned if moment is not None)])


def _after(lake: Lake, table: str, names: list[str], moment: dt.datetime) -> pa.Table:
    """The rows that were learned after a moment: mostly none, and an index says so."""
    return lookups.read(lake.open(table), names, f"created > {lookups.moment(moment)}")


def warning(lake: Lake, now: dt.datetime) -> str:
    """What is wrong if items were learned ahead of this clock, by more than :data:`SKEW`; else an empty text."""
    if not lake.exists("items"):
        return ""
    ahead = _after(lake, "items", ["item_id", "created"], now + SKEW)
    if not ahead.num_rows:
        return ""
    newest = pc.max(ahead["created"]).as_py()
    count, first = len(ahead["item_id"].unique()), pc.min(ahead["item_id"]).as_py()
    who = f"1 item, {first}, was" if count == 1 else f"{count} items, e.g. {first}, were"
    it = "It is shown, and so is what replaces it" if count == 1 else "They are shown, and so is what replaces them"
    return (
        f"{who} learned at a time that lies ahead of this clock, {newest:%Y-%m-%dT%H:%MZ} at the latest"
        f" (it is {now:%Y-%m-%dT%H:%MZ} here): that clock ran ahead, or this one is behind. {it}"
    )
