"""Ids of every form: what went in comes out, the key is ours alone, and two ids are never one."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.errors import InputError
from moon_ops.lake import ids
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake

Shop = Callable[..., Path]
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
UUID = uuid.UUID(int=2**127 + 5)
TEXTS = ["SKU-1", "a/b/c", "0042", "Größe ✓", "1.5", "+1", "1e5", "12E4", "x" * 3000, "'; DROP TABLE items", "%2F", str(UUID)]
NUMBERS = [0, 42, 2**53 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize(
    ("value", "is_"),
    [
        *((number, number if number < 2**63 else str(number)) for number in NUMBERS),
        *((str(number), number if number < 2**63 else str(number)) for number in NUMBERS),
        *((text, text.strip()) for text in TEXTS),
        (7.01e10, 70_100_000_000),
        (np.float32(12), 12),
        (np.int8(7), 7),
        (Decimal("9007199254740993"), 2**53 + 1),
        (UUID, str(UUID)),
        ("00", "00"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_id_in_its_one_form(value: Any, is_: ids.ShopId) -> None:
    assert ids.clean(value) == is_
    assert type(ids.clean(value)) is type(is_)
    assert 0 <= ids.key(is_) < 2**63
    assert ids.keys("item", [value]).tolist() == [ids.key(is_)]
    carried = ids.wire(is_)
    assert json.loads(json.dumps(carried, allow_nan=False)) == carried
    assert not isinstance(carried, int) or carried <= 2**53
    assert ids.clean(carried) == is_, "the answer is a good request"


@pytest.mark.parametrize(
    "value", [-1, "-1", "-1.0", 1.5, float(2**53), "", "  ", None, True, float("nan"), float("inf"), [1], "\ud800"], ids=repr
)
def test_what_is_no_id(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is not an id|fraction|stored as a float|surrogates"):
        ids.clean(value)


@pytest.mark.parametrize(
    ("cells", "keys"),
    [
        (pa.array([1, None], pa.uint8()), [1, None]),
        (pa.array([7.01e12, None, float("nan"), 2.0**53, 1.5]), [7_010_000_000_000, None, None, ids.LARGE, ids.FRACTION]),
        (pa.array([2.0**24 - 1, 2.0**24], pa.float32()), [2**24 - 1, ids.LARGE]),
        (pa.array([Decimal(5), Decimal(10**18)], pa.decimal128(38, 2)), [5, 10**18]),
        (pa.array([True]), [ids.NO_ID]),
        (pa.array(["1001.0", "7.012345678901E12", "7"]), [1001, 7012345678901, 7]),  # as pandas and Spark write floats
        (pa.array(["1.0", "9007199254740992.0"]), [1, ids.LARGE]),
        (pa.array(["9007199254740993", "1.0"]), [2**53 + 1, 1]),
        (pa.array(["1.0", "1.1"]), [ids.stable_id("1.0"), ids.stable_id("1.1")]),
        (pa.array(["7.01235E+12", "SKU"]), [ids.ROUNDED, ids.stable_id("SKU")]),
        (pa.array(["7.012345678901E+12"]), [7012345678901]),
        (pa.array(["-4", "SKU"]), [ids.NO_ID, ids.stable_id("SKU")]),
    ],
    ids=str,
)
def test_a_column_of_ids(cells: pa.Array, keys: list[Any]) -> None:
    read = ids.read(cells)
    assert [why or key for key, why in zip(read.keys.to_pylist(), read.why.to_pylist(), strict=True)] == keys
    assert read.keys.type == pa.int64()


def test_a_column_of_a_frame(make_shop: Shop) -> None:
    assert ids.keys("user", pd.Series([3.0, None])).tolist() == [3, -1]
    assert ids.keys("user", ["  a ", "", None]).tolist() == [ids.stable_id("a"), -1, -1]
    assert ids.keys("user", [UUID, "a", 4]).tolist() == [ids.stable_id(str(UUID)), ids.stable_id("a"), 4]
    with pytest.raises(InputError, match=r"user_id = 2\.5 is a number with a fraction"):
        ids.keys("user", pd.Series([1.0, 2.5]))
    with pytest.raises(InputError, match="True is not an id"):
        ids.keys("user", [True, "a"])


ENDINGS = ("jsonl", "parquet", "csv")


def bring(make_shop: Shop, ending: str, given: list[Any], name: str = "shop") -> Path:
    """An item, a query, and an event of a user for each id, in a format."""
    place, mixed = make_shop(name), len({type(i) for i in given}) > 1
    cells = [str(i) if mixed and ending == "parquet" else i for i in given]
    shop = {
        "items": {"item_id": cells, "title": ["Hat"] * len(cells), "spu_id": cells[::-1], "seller_id": cells},
        "queries": {"query_id": cells, "timestamp": ["2026-05-01"] * len(cells), "text": ["hat"] * len(cells)},
        "events": {"item_id": cells, "timestamp": ["2026-05-02"] * len(cells), "event": ["click"] * len(cells)},
    }
    shop["events"] |= {"user_id": cells[::-1], "query_id": cells, "session_id": cells}
    for table, columns in shop.items():
        if ending == "jsonl":
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            (place / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif ending == "csv":
            pd.DataFrame(columns, dtype=object).to_csv(place / f"{table}.csv", index=False)
        else:
            pq.write_table(pa.table(columns), place / f"{table}.parquet")
    return place


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("given", [TEXTS, NUMBERS[:5], [*TEXTS, *NUMBERS]], ids=["texts", "numbers", "both"])
def test_what_went_in_comes_out_of_the_lake(make_shop: Shop, empty: Lake, ending: str, given: list[Any]) -> None:
    report = ingest(bring(make_shop, ending, given), empty, now=NOW)
    assert (report.items, report.queries, report.events, report.refused) == (*[len(given)] * 3, {})
    expected = [ids.clean(i) for i in given]
    items = {row["source_id"]: row for row in empty.read("items").to_pylist()}
    assert set(items) == {str(i) for i in expected}
    for shown, reverse in zip(expected, expected[::-1], strict=True):
        row = items[str(shown)]
        assert row["item_id"] == ids.key(shown)
        assert ids.named(empty, "product", [row["spu_id"]]) == [reverse]
        assert ids.named(empty, "seller", [row["seller_id"]]) == [shown]
    events = empty.read("events")
    for column in ("item_id", "user_id", "query_id", "session_id"):
        assert set(ids.named(empty, ids.KINDS[column], events[column].to_pylist())) == set(expected)
    assert empty.exists("ids") == (given != NUMBERS[:5]), "numbers are their own keys"
    before = empty.count("ids")
    assert ingest(bring(make_shop, "jsonl", given, "again"), empty, now=NOW).known == 3 * len(given)
    assert empty.count("ids") == before


def test_large_numbers_in_json_keep_their_digits(make_shop: Shop, empty: Lake) -> None:
    given = [2**64 - 1, 2**64 - 2, 5]
    assert ingest(bring(make_shop, "jsonl", given), empty, now=NOW).items == 3
    assert sorted(empty.read("items")["source_id"].to_pylist()) == sorted(map(str, given))
    wrong = ingest(make_shop("wrong", items=[{"item_id": 1e17, "title": "Hat"}, {"item_id": 7.0, "title": "Cap"}]), empty, now=NOW)
    assert (wrong.items, wrong.refused) == (1, {"items.jsonl item_id": 1})
    assert "whole number stored as a float" in wrong.first_refusal


def test_a_product_of_one_item_has_the_items_id(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[{"item_id": "a/1", "title": "Hat"}]), empty, now=NOW)
    assert ids.named(empty, "product", empty.read("items")["spu_id"].to_pylist()) == ["a/1"]
    assert ids.named(empty, "item", [-1, 5, float("nan"), None]) == [None, 5, None, None]


def test_columns_of_uuids(make_shop: Shop, empty: Lake) -> None:
    given = [uuid.UUID(int=n) for n in (1, 2)]
    raw = pa.array([one.bytes for one in given], pa.binary(16))
    for name, column in (("bytes", raw), ("uuid", pa.ExtensionArray.from_storage(pa.uuid(), raw))):
        place = make_shop(name)
        pq.write_table(pa.table({"item_id": column, "title": ["Hat", "Cap"]}), place / "items.parquet")
        ingest(place, empty, now=NOW)
        assert empty.count("items") == 2
    assert sorted(empty.read("items")["source_id"].to_pylist()) == sorted(map(str, given))


def small(value: str) -> int:
    """Keys of which two are soon the same."""
    return int(value) if value.isdecimal() else 500 + len(value)


@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "stable_id", small)


@pytest.mark.usefixtures("colliding")
def test_two_ids_of_one_key_are_refused_and_never_one(make_shop: Shop, empty: Lake) -> None:
    """In one delivery both are; later it is the second; and so is a number that has the key of a text, or the other way round."""

    def bring(name: str, *given: Any) -> tuple[set[str], str]:
        report = ingest(make_shop(name, items=[{"item_id": i, "title": f"{i}"} for i in given]), empty, now=NOW)
        return set(empty.read("items")["source_id"].to_pylist()), report.first_refusal

    assert bring("one", "ab", "xy", "abc") == (
        {"ab", "abc"},
        "items.jsonl:2: item_id = 'xy' has the same key (502) as another id: 'ab' and 'xy' cannot both be used, rename one of them",
    )
    there, why = bring("two", "ijk", "abcd")
    assert there == {"ab", "abc", "abcd"}
    assert "'abc' and 'ijk' cannot both be used" in why
    there, why = bring("three", 503, 7)
    assert there == {"ab", "abc", "abcd", "7"}
    assert "item_id = 503 has the same key (503) as another id: '503' and 'abc'" in why
    there, why = bring("four", 505, 8)
    assert (there, why) == ({"ab", "abc", "abcd", "7", "505", "8"}, "")
    there, why = bring("five", "uvwxy", "z")
    assert there == {"ab", "abc", "abcd", "7", "505", "8", "z"}
    assert "'505' and 'uvwxy'" in why


@pytest.mark.usefixtures("colliding")
def test_users_who_share_a_key_are_refused(make_shop: Shop, empty: Lake) -> None:
    def event(user: Any) -> dict[str, Any]:
        return {"item_id": 1, "timestamp": "2026-05-02", "event": "click", "user_id": user}

    items = [{"item_id": 1, "title": "Hat"}]
    assert ingest(make_shop("one", items=items, events=[event("ann"), event("bert")]), empty, now=NOW).events == 2
    second = ingest(make_shop("two", items=items, events=[event("eve"), event("carla")]), empty, now=NOW)
    assert (second.events, second.refused) == (1, {"events.jsonl user_id": 1})
    assert "'ann' and 'eve' cannot both be used" in second.first_refusal
    assert set(ids.named(empty, "user", empty.read("events")["user_id"].to_pylist())) == {"ann", "bert", "carla"}


@pytest.mark.usefixtures("colliding")
@pytest.mark.parametrize("column", ["user_id", "session_id", "spu_id", "seller_id"])
@pytest.mark.parametrize("first", [503, "abc"])
def test_a_number_that_has_the_key_of_a_text_is_noticed_whatever_it_names(make_shop: Shop, empty: Lake, column: str, first: Any) -> None:
    second = "abc" if first == 503 else 503
    name = "items" if column in ("spu_id", "seller_id") else "events"

    def bring(place: str, given: Any) -> Any:
        event = {"item_id": 1, "timestamp": "2026-05-02", "event": "click"}
        items = [{"item_id": n, "title": "Hat", **({column: given} if n == 2 and name == "items" else {})} for n in (1, 2)]
        events = [{**event, column: given}] if name == "events" else []
        return ingest(make_shop(place, items=items, events=events), empty, now=NOW)

    assert bring("one", first).refused == {}
    assert bring("again", first).refused == {}
    report = bring("two", second)
    assert report.refused == {f"{name}.jsonl {column}": 1}
    assert "'503' and 'abc' cannot both be used" in report.first_refusal


def test_a_lake_from_before_learns_the_texts_that_it_kept(make_shop: Shop, empty: Lake) -> None:
    ingest(make_shop(items=[{"item_id": "old/1", "title": "Hat"}, {"item_id": 2, "title": "Cap"}]), empty, now=NOW)
    key = ids.key("old/1")
    shutil.rmtree(empty.address("ids"))
    assert ids.named(empty, "item", [key, 2]) == [key, 2]
    ingest(make_shop("new", items=[{"item_id": "new/1", "title": "Coat"}]), empty, now=NOW)
    assert ids.named(empty, "item", [key, 2, ids.key("new/1")]) == ["old/1", 2, "new/1"]


def test_a_refused_row_leaves_no_id(make_shop: Shop, empty: Lake) -> None:
    items = [{"item_id": "a", "title": "Hat"}, {"item_id": "b", "title": ""}]
    events = [{"item_id": "a", "timestamp": "soon", "event": "click", "user_id": "ann"}]
    ingest(make_shop(items=items, events=events), empty, now=NOW)
    assert empty.read("ids")["source_id"].to_pylist() == ["a"]
