"""What is in a shop, counted over columns of the lake, or of a lake that is made for the moment: what there is to learn from, what is
missing, and which recipe fits.
"""

from __future__ import annotations

import datetime as dt
import inspect
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake import counting
from moon_ops.lake.ingest import Feed, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.meanings import Meanings
from moon_ops.lake.query import newest, sql
from moon_ops.recipes.caps import Caps

TEXTS = ("title", "category", "brand", "attributes", "description")  # what an encoder reads of an item
HEAD = 0.01  # of the different texts, the most frequent: how much of all searches they are
SMALL = 1_000  # items up to which pretrained pictures pay more than a training from nothing: docs/encoder.md, real photographs
FEW_PAIRS = 2_000  # below, a training from nothing learns its pairs by heart
PLAIN = Caps()
ITEMS = """
SELECT count(*) AS items, count(DISTINCT spu_id) AS products, coalesce(sum(len(image_ids)), 0)::BIGINT AS pictures,
       count(*) FILTER (coalesce(len(image_ids), 0) = 0) AS without_picture,
       count(*) FILTER (description IS NULL OR description = '') AS without_description,
       count(*) FILTER (coalesce(len(category), 0) = 0) AS without_category,
       count(DISTINCT category[len(category)]) AS leaf_categories,
       count(*) FILTER (len(regexp_extract_all(concat_ws(' ', title, array_to_string(category, ' '), brand,
           array_to_string(map_values(attributes), ' '), description), '\\S+')) > $words) AS texts_cut_at_least
FROM items"""
PAIRS = """
SELECT CASE WHEN q.image_id IS NOT NULL THEN 'picture' ELSE 'text' END AS kind, e.event, count(DISTINCT (e.query_id, e.item_id)) AS pairs
FROM events e JOIN queries q USING (query_id) WHERE e.event IN ('click', 'cart', 'purchase')
GROUP BY GROUPING SETS ((kind, e.event), ()) ORDER BY ALL"""
SEARCHES = f"""
WITH asked AS (SELECT lower(trim(text)) AS words, count(*) AS times FROM queries WHERE coalesce(trim(text), '') <> '' GROUP BY 1),
ranked AS (SELECT times, row_number() OVER (ORDER BY times DESC, words) AS place, count(*) OVER () AS different FROM asked)
SELECT coalesce(sum(times), 0)::BIGINT AS searches, count(*) AS different, coalesce(sum(times) FILTER (times > 1), 0)::BIGINT AS repeated,
       coalesce(sum(times) FILTER (place <= greatest(1, {HEAD} * different)), 0)::BIGINT AS head FROM ranked"""
COLD = """
SELECT count(*) FROM items WHERE item_id NOT IN (SELECT item_id FROM events WHERE event <> 'impression' AND event_timestamp > $since)"""


def describe(lake: Lake, *, days: int = 30, max_text_tokens: int = 40, caps: Caps = PLAIN) -> dict[str, Any]:
    """What the lake holds, as a report. An item is cold if nothing but impressions happened to it in the last ``days`` of the log.

    ``texts_cut_at_least`` counts items of more words than ``max_text_tokens``: a tokenizer makes a token or more of a word, so an encoder
    of that limit cuts these, and maybe others. ``pairs`` has a pair under each event that made it, ``different_pairs`` once; both are of
    events within the shop's ``caps``, without purchases that were taken back, as ``moon check`` counts them. No picture is read. Raises
    :class:`~moon_ops.errors.InputError` for ``days`` below 1, and where the lake has no items.
    """
    if days < 1:
        raise InputError(f"days = {days} is no time to look back", action="give 1 or more")
    versions = lake.read("items", ["item_id", "spu_id", *TEXTS, "image_ids", "status", "event_timestamp", "created"])
    items = newest(versions, "item_id")
    items = items.filter(pc.not_equal(items["status"], "deleted"))
    if not items.num_rows:
        raise InputError(
            "the lake has no items in sale: there is nothing to describe", action="moon ingest DIRECTORY, or moon describe DIRECTORY"
        )
    queries = lake.read("queries", ["query_id", "text", "image_id"])
    events = counting.read(lake, [*counting.COLUMNS, "order_id"])
    report: dict[str, Any] = _one(sql(ITEMS, {"words": max_text_tokens}, items=items))
    report["texts_cut_at"] = max_text_tokens
    report["events"] = {
        row["event"]: row["n"] for row in sql("SELECT event, count(*) AS n FROM events GROUP BY 1 ORDER BY 1", events=events).to_pylist()
    }
    pairs = sql(PAIRS, events=counting.standing(counting.within(events, caps).events), queries=queries).to_pylist()
    report["pairs"] = {f"{row['kind']} → {row['event']}": row["pairs"] for row in pairs if row["event"]}
    report["different_pairs"] = next(row["pairs"] for row in pairs if not row["event"])
    asked = _one(sql(SEARCHES, queries=queries))
    share = {name: asked[name] / asked["searches"] if asked["searches"] else 0.0 for name in ("repeated", "head")}
    report |= {"text_searches": asked["searches"], "different_texts": asked["different"]}
    report |= {"repeated_share": share["repeated"], "head_share": share["head"]}
    report |= _times(items, events, days)
    report["recipe"], report["why"] = fitting(report)
    return report


def describe_directory(
    source: Path, *, now: dt.datetime, words: Meanings | None = None, days: int = 30, workers: int = 2, caps: Caps = PLAIN
) -> dict[str, Any]:
    """:func:`describe` of a directory in the ingest layout, read as an ingest into an empty lake would read it; no home is touched.

    Pictures of the directory are looked at and addresses are not asked, as ``moon check`` has it; none is kept. ``refused`` counts rows and
    ``unread`` pictures that would be left out. Raises :class:`~moon_ops.errors.InputError` where the ingest would end with one.
    """
    taken = inspect.unwrap(ingest)  # of a stage somebody is told; here nothing is taken in
    with tempfile.TemporaryDirectory(prefix="moon-describe-") as place:
        lake = Lake(place)
        report = taken(source, lake, now=now, workers=workers, words=words, feed=Feed(once=True, pictures=False))
        left_out = {"refused": report.refused, "unread": report.unread}
        return {"source": report.source, **describe(lake, days=days, caps=caps), **left_out}


def _one(table: pa.Table) -> dict[str, Any]:
    row: dict[str, Any] = table.to_pylist()[0]
    return row


def _times(items: pa.Table, events: pa.Table, days: int) -> dict[str, Any]:
    """Which days the log covers, and how many items are cold at its end."""
    if not events.num_rows:
        return {"first_event": None, "last_event": None, "days": 0, "cold_share": 1.0, "cold_days": days}
    first, last = (f(events["event_timestamp"]).as_py() for f in (pc.min, pc.max))
    (cold,) = sql(COLD, {"since": last - dt.timedelta(days=days)}, items=items, events=events).to_pylist()[0].values()
    covered = (last.date() - first.date()).days + 1
    times = {"first_event": first.isoformat(), "last_event": last.isoformat(), "days": covered}
    return times | {"cold_share": cold / items.num_rows, "cold_days": days}


def fitting(report: dict[str, Any]) -> tuple[str, str]:
    """The shipped recipe that fits a shop on two CPU cores, and why; the first rule that holds. An empty name: none can learn from it."""
    learned = report["different_pairs"]
    pictured = report["items"] - report["without_picture"]
    if not learned:
        return "", "no click, cart or purchase follows a query: nothing says which item was meant. Bring queries and events that name them"
    if not pictured:
        return (
            "smolvlm-tiny",
            "no item has a picture, so the pictures' tower does not matter: the smallest language model with a vision transformer",
        )
    if report["items"] <= SMALL or learned < FEW_PAIRS:
        why = f"{report['items']} items and {learned} pairs are too few to learn pictures from nothing: weights of ImageNet"
        return "moon-warm", f"{why} (install moon_ops[warm])"
    return "moon-tiny", f"{report['items']} items and {learned} pairs are enough for a training from nothing on two CPU cores"
