"""A made-up shop of any size in the ingest layout: Parquet in pieces, one in memory at a time, the same for the same seed.

What is as in a shop: few items have most of the impressions (Zipf's law with exponent 1), and few users most of the visits; a visit is a
query, ten items shown at one moment, and of some of them a click, a cart and a purchase in the minutes after; days have nights. Titles are
words drawn at random. There are no pictures.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Ints = NDArray[np.int64]
START, DAYS = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), 60
END = START + dt.timedelta(days=DAYS)
PIECE = 100_000  # items in a file, and visits
SHOWN = 10  # items of a visit
CLICKED, CARTED, BOUGHT = 0.05, 0.2, 0.3  # of those shown, of those clicked, of those in a cart
A_VISIT = SHOWN * (1 + CLICKED * (1 + CARTED * (1 + BOUGHT)))  # events of it, on average
EVENTS_A_USER = 100
WORDS, COLOURS = [f"{a}{b}" for a in ("lam", "tab", "cha", "mir", "rug", "vas") for b in ("p", "le", "ir", "ror", "o", "e")], 40
SECOND = 1_000_000  # µs
STAMP = pa.timestamp("us", tz="UTC")


def shop(
    place: Path,
    items: int,
    events: int,
    *,
    seed: int = 0,
    of: int = 0,
    first: dt.datetime = START,
    days: int = DAYS,
    **numbered: int,
) -> None:
    """Write ``items`` and about ``events`` that name them, or ``of`` so many items that are known; over ``days`` from ``first``.

    ``items_from`` and ``queries_from``: the first number of each that is used, 0 without.
    """
    place.mkdir(parents=True)
    for number, start in enumerate(range(0, items, PIECE)):
        count, before = min(PIECE, items - start), numbered.get("items_from", 0) + start
        _write(place / "items" / f"part-{number:05}.parquet", _items(np.random.default_rng([seed, 0, before]), before, count))
    visits = round(events / A_VISIT)
    for number, start in enumerate(range(0, visits, PIECE)):
        count, before = min(PIECE, visits - start), numbered.get("queries_from", 0) + start
        rng = np.random.default_rng([seed, 1, before])
        low, high = (int((first + days * dt.timedelta(days=1) * share).timestamp()) for share in (start / visits, (start + count) / visits))
        queries, log = _visits(rng, before, count, (low, high), items or of, max(1, events * (DAYS // days) // EVENTS_A_USER))
        _write(place / "queries" / f"part-{number:05}.parquet", queries)
        _write(place / "events" / f"part-{number:05}.parquet", log)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=PIECE)


def _texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """A thing, its colour and another word, e.g. ``lamp 17 vase``."""
    drawn = zip(*(rng.integers(0, most, count).tolist() for most in (len(WORDS), COLOURS, len(WORDS))), strict=True)
    return (f"{WORDS[a]} {b} {WORDS[c]}" for a, b, c in drawn)


def _items(rng: np.random.Generator, before: int, count: int) -> pa.Table:
    numbers = np.arange(before, before + count)
    columns: dict[str, Any] = {"item_id": numbers, "spu_id": numbers // 3, "title": list(_texts(rng, count))}
    columns |= {"category": [f"home > {WORDS[n]}" for n in rng.integers(0, len(WORDS), count).tolist()]}
    columns |= {"seller_id": popular(rng, 1 + count // 10, count), "price": np.round(rng.lognormal(3, 1, count), 2)}
    return pa.table(columns)


def popular(rng: np.random.Generator, most: int, count: int) -> Ints:
    """Numbers [count] below ``most``: the rank r is drawn as often as 1/r, and which number has which rank is mixed."""
    ranks = np.minimum(np.exp(rng.random(count) * np.log(most + 1)).astype(np.int64) - 1, most - 1)
    step = 7_368_787  # a prime, so that ranks stay apart unless it divides ``most``
    return ranks * step % most if most % step else ranks


def _visits(
    rng: np.random.Generator, before: int, count: int, between: tuple[int, int], items: int, users: int
) -> tuple[pa.Table, pa.Table]:
    """Queries and events of ``count`` visits in time order, numbered from ``before``."""
    seconds = np.sort(rng.uniform(*between, count))
    seconds += 3600 * 4 * np.sin((seconds % 86400) / 86400 * 2 * np.pi)  # most come in the evening
    times, visits = (np.clip(seconds, *between) * SECOND).astype(np.int64), np.arange(before, before + count)
    queries = {"query_id": visits, "timestamp": pa.array(times).cast(STAMP), "text": list(_texts(rng, count))}
    each = np.repeat(np.arange(count), SHOWN)
    shown = {"visit": each, "item": popular(rng, items, count * SHOWN), "at": times[each], "position": np.tile(np.arange(SHOWN), count)}
    parts, kinds = [shown], ["impression"]
    for kind, share in (("click", CLICKED), ("cart", CARTED), ("purchase", BOUGHT)):
        some = rng.random(len(parts[-1]["at"])) < share
        later = {name: cells[some] for name, cells in parts[-1].items()}
        parts.append(later | {"at": later["at"] + (rng.exponential(60, len(later["at"])) * SECOND).astype(np.int64) + 1})
        kinds.append(kind)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in shown}
    order = np.argsort(rows["at"], kind="stable")
    rows = {name: cells[order] for name, cells in rows.items()}
    what = np.repeat(np.arange(len(kinds)), [len(part["at"]) for part in parts])[order]
    log = pa.table(
        {
            "timestamp": pa.array(rows["at"]).cast(STAMP),
            "user_id": popular(rng, users, count)[rows["visit"]],
            "item_id": rows["item"],
            "query_id": visits[rows["visit"]],
            "event": pa.DictionaryArray.from_arrays(pa.array(what.astype(np.int8)), kinds),
            "session_id": visits[rows["visit"]],
            "position": pa.array(rows["position"].astype(np.int32)),
        }
    )
    return pa.table(queries), log
