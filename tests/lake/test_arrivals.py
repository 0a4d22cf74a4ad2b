"""The same event again: in a file, in a later one, changed, with and without an id of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from coat_and_hat import GOOD, NOW, Shop
from pyarrow import csv

from moon_ops.lake.ingest import IngestReport, ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS

CLICK: dict[str, Any] = {"timestamp": "2026-05-02T10:00:00", "item_id": 1, "event": "click", "user_id": 7}
LATER = CLICK | {"timestamp": "2026-05-02T10:00:09"}
Bring = Callable[..., IngestReport]


@pytest.fixture
def bring(make_shop: Shop, empty: Lake) -> Bring:
    """Bring events in a directory of their own, in a format."""
    number = iter(range(99))

    def brought(*events: dict[str, Any], fmt: str = "jsonl") -> IngestReport:
        shop = make_shop(f"shop{next(number)}", items=GOOD["items"], pictures=GOOD["pictures"])
        names = dict.fromkeys(name for row in events for name in row)
        columns = {name: [row.get(name) for row in events] for name in names}
        if fmt == "jsonl":
            (shop / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
        elif fmt == "csv":
            csv.write_csv(pa.table(columns), shop / "events.csv")
        else:
            pq.write_table(pa.table(columns), shop / "events.parquet")
        return ingest(shop, empty, now=NOW)

    return brought


def fate(report: IngestReport) -> tuple[int, int, int]:
    """Events that are new, that are known (as two items may be), and that were refused."""
    items = report.items + report.updated
    return report.events, report.known - (2 - items), sum(n for name, n in report.refused.items() if name.startswith("events"))


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_an_event_with_an_id_is_there_once(bring: Bring, empty: Lake, fmt: str) -> None:
    events = [CLICK | {"event_id": "e/1"}, LATER | {"event_id": "e/2"}, CLICK | {"event_id": "e/1"}, CLICK | {"event_id": "e/3"}]
    assert fate(bring(*events, fmt=fmt)) == (3, 1, 0), "two alike with ids of their own are two"
    assert fate(bring(*events, fmt=fmt)) == (0, 4, 0)
    assert fate(bring(LATER | {"event_id": "e/2", "colour": "red"}, fmt=fmt)) == (0, 1, 0), "the shop's own columns tell none apart"
    assert sorted(empty.read("events")["event_id"].to_pylist()) == ["e/1", "e/2", "e/3"]


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_an_id_with_another_content_is_refused_and_the_first_counts(bring: Bring, empty: Lake, fmt: str) -> None:
    changed = CLICK | {"event_id": 5, "item_id": 2}
    assert fate(bring(CLICK | {"event_id": 5}, changed, fmt=fmt)) == (1, 0, 1)
    assert fate(bring(LATER | {"event_id": 5}, changed, CLICK | {"event_id": 5}, fmt=fmt)) == (0, 0, 3)
    assert empty.read("events")["item_id"].to_pylist() == [1]
    reasons = {row["reason"] for row in empty.read("quarantine").to_pylist()}
    assert all("is known with another content, and the first one counts" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(5, "5"), ("5", "5"), (5.0, "5"), ("0042", "0042"), (2**64 - 1, str(2**64 - 1)), ("a/b", "a/b"), (" x ", "x"), ("12e4", "12e4")],
)
def test_an_id_of_any_form_is_kept_as_the_shops_text(bring: Bring, empty: Lake, given: Any, kept: str) -> None:
    assert fate(bring(CLICK | {"event_id": given, "order_id": given})) == (1, 0, 0)
    assert empty.read("events", ["event_id", "order_id"]).to_pylist() == [{"event_id": kept, "order_id": kept}]
    assert not empty.exists("ids"), "nothing is joined by it, so it needs no key"


@pytest.mark.parametrize("given", [-1, 1.5, "7.01235E+12", "-4"])
def test_what_is_no_id_is_refused(bring: Bring, given: Any) -> None:
    assert fate(bring(CLICK | {"event_id": given}, LATER)) == (1, 0, 1)
    assert fate(bring(CLICK | {"order_id": given}, LATER)) == (0, 1, 1)


def test_events_without_ids_are_known_by_their_columns(bring: Bring) -> None:
    assert fate(bring(CLICK, CLICK, LATER, CLICK | {"colour": "red"})) == (2, 2, 0)
    assert fate(bring(CLICK, LATER, CLICK | {"position": 3})) == (1, 2, 0)


def test_a_shop_that_begins_to_send_ids_brings_no_event_twice(bring: Bring) -> None:
    bring(CLICK, LATER)
    assert fate(bring(CLICK | {"event_id": "a"}, LATER | {"event_id": "b"}, CLICK | {"event_id": "c", "item_id": 2})) == (1, 2, 0)
    assert fate(bring(CLICK | {"item_id": 2})) == (0, 1, 0)


def test_an_order_tells_purchases_apart_where_both_name_one(bring: Bring) -> None:
    bought = CLICK | {"event": "purchase"}
    assert fate(bring(bought)) == (1, 0, 0)
    assert fate(bring(bought | {"order_id": "A-1"})) == (0, 1, 0)
    assert fate(bring(LATER | {"event": "purchase", "order_id": "A-1"}, LATER | {"event": "purchase", "order_id": "A-2"})) == (2, 0, 0)


def test_a_lake_of_before_is_not_brought_again(make_shop: Shop, empty: Lake) -> None:
    """Its events have no such columns, and its files may have had them all the time."""
    events = [CLICK | {"event": "purchase", "order_id": "A-1", "event_id": "x"}, LATER | {"event_id": "y"}]
    shop = make_shop(items=GOOD["items"], pictures=GOOD["pictures"], events=events)
    ingest(shop, empty, now=NOW)
    table = empty.read("events").drop_columns(["event_id", "order_id"])
    before = Lake(f"{empty.uri}-before")
    for name in ("items", "images", "queries"):
        before.append(name, empty.read(name))
    before.append("events", table)
    report = ingest(shop, before, now=NOW)
    assert (report.events, before.count("events")) == (0, 2)
    assert set(SCHEMAS["events"].names) == set(before.open("events").schema.names)


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_words_for_undoings_quantities_and_positions(bring: Bring, empty: Lake, fmt: str) -> None:
    words = ["refund", "Order Cancelled", "returned", "canceled", "purchase", "purchase", "cart", "click"]
    amounts = [None, None, None, None, -2, 1, -1, -1]
    places = [-1, 1_000_001, 0, None, 3, None, None, None]
    rows = [
        CLICK | {"event": word, "Quantity": amount, "position": place, "session_id": n}
        for n, (word, amount, place) in enumerate(zip(words, amounts, places, strict=True))
    ]
    report = bring(*rows, fmt=fmt)
    assert fate(report) == (5, 0, 3)
    assert {name.partition(" ")[2]: count for name, count in report.refused.items()} == {"position": 2, "event": 1}
    kept = sorted(empty.read("events", ["session_id", "event"]).to_pylist(), key=lambda row: row["session_id"])
    assert [row["event"] for row in kept] == ["return", "cancel", "return", "purchase", "click"]
    assert pc.sum(pc.is_valid(empty.read("events")["extra"])).as_py() == 3, "the shop's own column stays one"


def test_two_thousand_ids_go_in_and_are_known(bring: Bring, tmp_path: Path) -> None:
    events = [CLICK | {"event_id": f"e{n}", "session_id": n % 3} for n in range(2000)]
    assert fate(bring(*events, fmt="parquet")) == (2000, 0, 0)
    assert fate(bring(*events[1000:], CLICK | {"event_id": "new"}, fmt="csv")) == (1, 1000, 0)
