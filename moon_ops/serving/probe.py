"""A probe of live recall: a few searches that led to a purchase, asked again of what is served, as a user would ask them.

It notices that a release finds less than before, not how good it is: some of these queries may be older than the encoder's training. The
evaluation of a release (:mod:`moon_ops.release.recall`) is the measure.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from moon_ops.errors import InputError
from moon_ops.lake import counting
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import VALIDITY
from moon_ops.lake.tables import active_as_of, image_bytes
from moon_ops.serving.canary import Release

MOST, FIRST = 64, 10
DRAWN_FROM = 200_000  # the events written last, of which the purchases are taken
LEAST = 16  # answers below which a share says nothing


@dataclass(frozen=True)
class Answer:
    """A query and the item that was bought after it."""

    query_id: int
    item_id: int


@dataclass(frozen=True)
class Recall:
    """The share of the answers found among the first ten; ``asked`` are those whose item is still on sale."""

    recall: float
    asked: int


def answers(lake: Lake, most: int = MOST) -> list[Answer]:
    """The queries that led to a purchase last, each with what was bought first after it; the newest ones, each query once.

    Raises :class:`~moon_ops.errors.MoonError` or what Lance raises if the lake cannot be read.
    """
    if not lake.exists("events"):
        return []
    rows = counting.standing(counting.read(lake, [*counting.PURCHASES, "query_id"], last=DRAWN_FROM))
    bought = rows.filter(pc.and_(pc.equal(rows["event"], "purchase"), pc.is_valid(rows["query_id"])))
    bought = bought.sort_by([("event_timestamp", "ascending"), ("item_id", "ascending")])
    first: dict[int, int] = {}
    for query, item in zip(bought["query_id"].to_pylist(), bought["item_id"].to_pylist(), strict=True):
        first.setdefault(query, item)
    return [Answer(query, item) for query, item in list(first.items())[-most:]]


def measure(release: Release, lake: Lake, known: Sequence[Answer], now: dt.datetime, stopped: Callable[[], bool]) -> Recall | None:
    """Ask ``release`` for the answers, in the path of ``/v1/search``; None where fewer than :data:`LEAST` can be asked.

    Queries and pictures are read from the lake each time, so what was erased is not asked. Another item of the same product
    counts as found.
    """
    queries, products = _queries(lake, known), _products(lake, [answer.item_id for answer in known], now)
    found: dict[Answer, list[int]] = {}
    for answer in known:
        if stopped():
            return None
        if answer.item_id in products and answer.query_id in queries:
            text, picture = queries[answer.query_id]
            with contextlib.suppress(InputError):  # a picture that cannot be read
                found[answer] = [hit.item_id for hit in release.search(release.embed(text, picture), FIRST)]
    if len(found) < LEAST:
        return None
    others = _products(lake, sorted({item for items in found.values() for item in items}), now)
    hits = [products[answer.item_id] in {others.get(item) for item in items} for answer, items in found.items()]
    return Recall(sum(hits) / len(hits), len(hits))


def _queries(lake: Lake, known: Sequence[Answer]) -> dict[int, tuple[str, bytes | None]]:
    """Text and picture of the queries that can still be asked."""
    rows = lake.read("queries", ["query_id", "text", "image_id"], _among("query_id", [answer.query_id for answer in known])).to_pylist()
    wanted = [row["image_id"] for row in rows if row["image_id"]]
    pictures = dict(image_bytes(lake, wanted)) if wanted else {}
    asked = {row["query_id"]: (row["text"] or "", pictures.get(row["image_id"])) for row in rows}
    return {query: (text, picture) for query, (text, picture) in asked.items() if text.strip() or picture}


def _products(lake: Lake, item_ids: Sequence[int], now: dt.datetime) -> Mapping[int, int]:
    """The product (SPU) of each item that is on sale now."""
    rows: pa.Table = lake.read("items", [*VALIDITY, "spu_id"], _among("item_id", item_ids))
    active = active_as_of(rows, now)
    return dict(zip(active["item_id"].to_pylist(), active["spu_id"].to_pylist(), strict=True))


def _among(column: str, ids: Sequence[int]) -> str:
    return f"{column} IN ({', '.join(str(int(i)) for i in ids) or 'NULL'})"
