"""Impressions and their labels: what was shown to whom, and whether it was clicked."""

from __future__ import annotations

import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moon_ops import pieces
from moon_ops.columns import ROWS, SHOWN_AT, Feature
from moon_ops.dealing import Deal, here
from moon_ops.errors import StageError
from moon_ops.lake import counting, event_log, own_columns, spills
from moon_ops.lake.lake import Lake
from moon_ops.lake.query import sql
from moon_ops.lake.schemas import STAMP
from moon_ops.recipes.caps import SKEW, Caps
from moon_ops.recipes.ctr import CtrRecipe

PLAIN = Caps()


def has_click_sequences(lake: Lake) -> bool:
    """Whether the lake has what a click model learns from: impressions and clicks of known users."""
    if not lake.exists("events"):
        return False
    events, known = lake.open("events"), "user_id IS NOT NULL AND event ="
    return all(events.to_table(columns=["event"], filter=f"{known} '{kind}'", limit=1).num_rows for kind in ("click", "impression"))


@dataclass(frozen=True)
class Shown:
    """The rows of impressions, and what became of the events that they were made of.

    ``counts``: clicks; clicks_early, logged before their impression and taken as its; clicks_unshown, of no impression in their session;
    and events and rows beyond each cap (visitor_item, visitor, most.visitor, …).
    """

    rows: pa.Table
    counts: dict[str, int]


def impressions(
    lake: Lake, start: dt.datetime, end: dt.datetime, own: Sequence[Feature] = (), *, rule: CtrRecipe | Caps = PLAIN, deal: Deal = here
) -> pa.Table:
    """The rows of :func:`shown`."""
    return shown(lake, start, end, own, rule=rule, deal=deal).rows


def shown(
    lake: Lake, start: dt.datetime, end: dt.datetime, own: Sequence[Feature] = (), *, rule: CtrRecipe | Caps = PLAIN, deal: Deal = here
) -> Shown:
    """The entity rows in [start, end): user_id, item_id, query_id, session_id, event_timestamp, label, text, is_image, in time order.

    Of ``own`` features those of the context are columns, too, and so is the place in the list (``shown_at``) if the rule is a recipe with
    ``position``. Caps, and how late an impression may be logged, are those of the ``rule``.

    The label is whether the same user clicked the item in the same session, for the same query, from this moment on, before it was shown
    again, and before ``end``: what happened later is not known yet. A click that no impression precedes belongs to the next one, if that
    was logged within ``click_skew`` seconds; that row has the time of the click, so that its features do not show the click itself.
    Of a long log the rows of some users after others are made wherever ``deal`` has it done (:mod:`moon_ops.dealing`).
    Raises :class:`StageError` if there are no impressions of known users.
    """
    lake.open("events", needs="moon ingest DIRECTORY")
    context = {feature.name: own_columns.of_context(feature) for feature in own if feature.view == ROWS}
    context |= {SHOWN_AT: "CAST(position AS BIGINT)"} if isinstance(rule, CtrRecipe) and rule.position else {}
    columns, where = [*counting.COLUMNS, *(("position", "extra") if context else ())], _between(start, end)
    queries = lake.read("queries", ["query_id", "text", "image_id"])
    make = partial(_made, start=start, rule=rule, context=context)
    if lake.count("events") > pieces.LONG and not (isinstance(rule, CtrRecipe) and (rule.most.item or rule.most.query)):
        rows, counts = _by_parts(counting.parts(lake, columns, where), lake.count("events"), queries, make, deal)
    else:
        rows, counts = make(counting.read(lake, columns, where), queries)
    if not rows.num_rows:
        raise StageError(
            f"the lake has no impressions of known users between {start:%Y-%m-%d} and {end:%Y-%m-%d}: a click model cannot be trained",
            action="ingest events with event = impression and click, and user_id",
        )
    return Shown(rows, counts)


def _made(
    events: pa.Table, queries: pa.Table, *, start: dt.datetime, rule: CtrRecipe | Caps, context: Mapping[str, str]
) -> tuple[pa.Table, dict[str, int]]:
    """The rows of these events: of all, or of all of some users."""
    events, counts = _events(events, start, rule.caps if isinstance(rule, CtrRecipe) else rule)
    skew = dt.timedelta(seconds=rule.click_skew if isinstance(rule, CtrRecipe) else SKEW)
    clicks, fates = _placed(events, skew)
    rows, counts = _rows(events, clicks, queries, context), fates | counts
    if not isinstance(rule, CtrRecipe):
        return rows, counts
    kept = counting.newest(rows, rule.most)
    return kept.events, counts | kept.left_out


def _by_parts(
    events: Iterator[pa.Table], count: int, queries: pa.Table, make: Callable[..., tuple[pa.Table, dict[str, int]]], deal: Deal
) -> tuple[pa.Table, dict[str, int]]:
    """The same rows, of some users after others, and then put into the order of time, a span after the other; in a mapped file.

    A label, and each cap that is asked here, looks at one user alone. Texts are numbers of different ones until the end.
    """
    if (first := next(events, None)) is None:
        return pa.table({}), {}
    numbers, texts = spills.numbered(queries["text"])
    queries = queries.set_column(1, "text", numbers).set_column(2, "image_id", pc.if_else(pc.is_valid(queries["image_id"]), True, None))
    parts = 1 + count // pieces.LONG
    by_user, by_time, counts, seen = spills.Parts(parts), spills.Parts(parts), Counter[str](), [np.zeros(0, np.int64)]
    for some in itertools.chain([first], events):
        by_user.add(some, _shuffled(some["user_id"].to_numpy()) % parts)
        seen.append(some["event_timestamp"].cast(pa.int64()).to_numpy()[::SAMPLED])
    times = np.sort(np.concatenate(seen))
    edges = times[len(times) * np.arange(1, parts) // parts] if len(times) else times
    for rows, found in deal(partial(make, queries=queries), by_user):
        counts.update(found)
        by_time.add(rows, np.searchsorted(edges, rows["event_timestamp"].cast(pa.int64()).to_numpy()))
    return spills.mapped(deal(_in_order, by_time), {"text": texts}), dict(counts)


def _in_order(rows: pa.Table) -> pa.Table:
    """As :func:`_rows` has them."""
    names = (name for name in rows.column_names if name not in (*ORDER, "text", "is_image"))
    return sql(f"SELECT * FROM rows ORDER BY {', '.join((*ORDER, *names))}", rows=rows)


def _shuffled(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that are spread whatever the ids are."""
    return ((ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)).astype(np.int64)


SAMPLED = 997  # of so many times one says where spans of time begin
ORDER = ("event_timestamp", "session_id", "item_id", "user_id", "query_id", "label")  # of rows
SAME = " AND ".join(f"{{0}}.{name} = {{1}}.{name}" for name in ("user_id", "item_id", "query_id", "session_id"))
SHOWN = "(SELECT * FROM events WHERE event = 'impression') shown"
PLACED = f"""
WITH clicks AS (SELECT * FROM events WHERE event = 'click'),
near AS (SELECT * FROM {SHOWN} SEMI JOIN clicks USING (user_id, item_id, query_id, session_id))  -- few are left to be sorted
SELECT c.user_id, c.item_id, c.query_id, c.session_id, c.event_timestamp AS clicked, shown.event_timestamp AS seen
FROM clicks c ASOF LEFT JOIN near shown
    ON {SAME.format("c", "shown")} AND c.event_timestamp >= shown.event_timestamp"""
EARLY = f"""
SELECT c.user_id, c.item_id, c.query_id, c.session_id, c.clicked, min(shown.event_timestamp) AS seen
FROM (SELECT DISTINCT * FROM clicks) c JOIN {SHOWN} ON {SAME.format("c", "shown")}
    AND shown.event_timestamp > c.clicked AND shown.event_timestamp <= c.clicked + $skew
GROUP BY ALL"""


def _placed(events: pa.Table, skew: dt.timedelta) -> tuple[pa.Table, dict[str, int]]:
    """Clicks of impressions and when each one's was ``seen``; and how many clicks there are, by their fate."""
    clicks = sql(PLACED, events=events)
    lost = clicks.filter(pc.is_null(clicks["seen"]))
    early, count = lost.slice(0, 0), 0
    if lost.num_rows and skew:
        early = sql(EARLY, {"skew": skew}, clicks=lost.drop_columns("seen"), events=events)
        names = ", ".join(name for name in early.column_names if name != "seen")
        count = sql(f"SELECT count(*) AS n FROM lost SEMI JOIN early USING ({names})", lost=lost, early=early)["n"][0].as_py()
    counts = {"clicks": clicks.num_rows, "clicks_early": count, "clicks_unshown": lost.num_rows - count}
    return pa.concat_tables([clicks.filter(pc.is_valid(clicks["seen"])), early]), counts


def _rows(events: pa.Table, clicks: pa.Table, queries: pa.Table, context: Mapping[str, str]) -> pa.Table:
    """Each impression with its label, its query, and the ``context`` that the recipe asks for: columns by name, in DuckDB's words."""
    chosen = "".join(f", {words} AS {name}" for name, words in context.items())
    given = "".join(f", shown.{name}" for name in context)
    query = f"""
    WITH shown AS (SELECT *{chosen} FROM events WHERE event = 'impression'),
    hit AS (SELECT user_id, item_id, query_id, session_id, seen, min(clicked) AS clicked FROM clicks GROUP BY ALL)
    SELECT shown.user_id, shown.item_id, shown.query_id, shown.session_id,
           least(shown.event_timestamp, coalesce(hit.clicked, shown.event_timestamp)) AS event_timestamp,
           (hit.user_id IS NOT NULL)::BIGINT AS label, queries.text, queries.image_id IS NOT NULL AS is_image{given}
    FROM shown LEFT JOIN hit ON {SAME.format("hit", "shown")} AND hit.seen = shown.event_timestamp
    LEFT JOIN queries ON queries.query_id = shown.query_id
    ORDER BY 5, shown.session_id, shown.item_id, shown.user_id, shown.query_id, label{given}"""
    return sql(query, events=events, clicks=clicks, queries=queries)


def _between(start: dt.datetime, end: dt.datetime) -> str:
    """Lance's filter of what rows are made of; what came before on the first day counts for its caps."""
    day = start.astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since, until = map(event_log.literal, (day, end))
    return f"user_id IS NOT NULL AND event IN ('impression', 'click') AND event_timestamp >= {since} AND event_timestamp < {until}"


def _events(found: pa.Table, start: dt.datetime, caps: Caps) -> tuple[pa.Table, dict[str, int]]:
    """Events from ``start`` on that are within the caps, and how many are not; -1 where there is no query or no session."""
    counted = counting.within(found, caps, ("visitor_item", "visitor"))
    events = counted.events
    events = events.filter(pc.greater_equal(events["event_timestamp"], pa.scalar(start, STAMP)))
    for name in ("query_id", "session_id"):
        events = events.set_column(events.column_names.index(name), name, pc.fill_null(events[name], -1))
    return events, counted.left_out
