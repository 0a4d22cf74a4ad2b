"""Rows that were refused, written as CSV: what is sent back unmended is refused again, and what is mended says what it said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coat_and_hat import DAY, NOW, Shop

from moon_ops.errors import InputError
from moon_ops.lake import quarantine, versions
from moon_ops.lake.ingest import Feed, ingest
from moon_ops.lake.lake import Lake


def written(lake: Lake, shop: Path, name: str = "items.csv") -> Path:
    """The refused rows as the only file of a directory."""
    shop.mkdir(exist_ok=True)
    (made,) = quarantine.write_csv(quarantine.refused(lake), shop / name)
    return made


def test_a_row_with_a_wrong_number_of_cells_is_refused_until_it_is_mended(make_shop: Shop, empty: Lake, tmp_path: Path) -> None:
    shop = make_shop()
    text = "item_id,title,description,brand\n1,Bowl, blue,nice,ACME\n2,Cup\n3,Hat,warm,ACME\n"
    (shop / "items.csv").write_text(text)
    assert ingest(shop, empty, now=NOW).refused == {"items.csv": 2}
    for day in (1, 2):
        made = written(empty, tmp_path / "mended")
        rows = list(csv.reader(made.read_text(encoding="utf-8-sig").splitlines()))
        assert rows[0] == ["item_id", "title", "description", "brand", "_reason"], "as the file has them"
        assert [row[:-1] for row in rows[1:]] == [["1", "Bowl", " blue", "nice", "ACME"], ["2", "Cup", "", "", ""]]
        made.write_text(made.read_text(encoding="utf-8-sig") + "3,Hat,warm,ACME,\n")
        report = ingest(tmp_path / "mended", empty, now=NOW + day * DAY)
        assert (report.items, report.updated, report.refused) == (0, 0, {"items.csv": 2})
    made.write_text('item_id,title,description,brand\n1,"Bowl, blue",nice,ACME\n2,Cup,,\n')
    assert ingest(tmp_path / "mended", empty, now=NOW + 3 * DAY).items == 2
    assert quarantine.refused(empty) == []
    assert len(quarantine.refused(empty, mended=True)) >= 2


def test_lists_and_maps_come_back_as_they_were(make_shop: Shop, empty: Lake, tmp_path: Path) -> None:
    shop = make_shop()
    row = {"title": "Bowl", "item_id": 1, "category": ["A > B", "C"], "attributes": [("c", "r")], "tags": ["x", "y"], "price": -1.0}
    kinds = pa.schema(
        [
            *(("title", pa.string()), ("item_id", pa.int64()), ("category", pa.list_(pa.string()))),
            *(("attributes", pa.map_(pa.string(), pa.string())), ("tags", pa.list_(pa.string())), ("price", pa.float64())),
        ]
    )
    pq.write_table(pa.Table.from_pylist([row, {**row, "item_id": 2, "price": 3.0}], kinds), shop / "items.parquet")
    ingest(shop, empty, now=NOW)
    made = written(empty, tmp_path / "mended")
    assert made.read_bytes().startswith(b"\xef\xbb\xbftitle,item_id,category,"), "Excel knows the encoding by it"
    made.write_text(made.read_text(encoding="utf-8-sig").replace("-1.0", "3.0"), encoding="utf-8-sig")
    assert ingest(tmp_path / "mended", empty, now=NOW + DAY).items == 1
    mended, good = versions.current(empty, ["category", "attributes", "content_hash", "extra"]).to_pylist()
    assert (mended["category"], mended["attributes"]) == (["A > B", "C"], [("c", "r")])
    assert mended["content_hash"] == good["content_hash"]
    assert json.loads(mended["extra"]) == {"tags": "x|y"}


def test_a_row_that_contradicts_its_item_says_that_all_its_rows_go_together(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop(pictures={"a.png": "red", "b.png": "blue"})
    (shop / "items.csv").write_text("item_id,title,price,images\n1,Bowl,10,a.png\n1,Bowl,12,b.png\n")
    report = ingest(shop, empty, now=NOW)
    assert report.first_refusal.endswith(
        "the first row counts (send all rows of the item again: one alone takes the pictures of the others away)"
    )


def test_mended_events_are_sent_alone(make_shop: Shop, empty: Lake, tmp_path: Path) -> None:
    event = {"timestamp": "2026-01-01T01:00:00Z", "item_id": 1, "event": "clack", "user_id": 1}
    ingest(make_shop(items=[{"item_id": 1, "title": "Bowl"}], events=[event]), empty, now=NOW)
    assert empty.count("events") == 0
    made = written(empty, tmp_path / "mended", "events.csv")
    made.write_text(made.read_text(encoding="utf-8-sig").replace("clack", "click"))
    report = ingest(tmp_path / "mended", empty, now=NOW + DAY)
    assert (report.items, report.events, report.refused) == (0, 1, {})
    assert versions.current(empty, ["title"])["title"].to_pylist() == ["Bowl"]
    with pytest.raises(InputError, match="has no items"):  # what is to be the whole catalogue has one
        ingest(tmp_path / "mended", empty, now=NOW + DAY, feed=Feed(full=True))
    with pytest.raises(InputError, match="has no items"):
        ingest(tmp_path / "mended", Lake(str(tmp_path / "another")), now=NOW + DAY)


def test_a_whole_number_is_one_whatever_stands_beside_it(make_shop: Shop, empty: Lake) -> None:
    items = [{"item_id": n, "title": "Bowl", "attributes": {"size": n}} for n in (1, 2)]
    ingest(make_shop(items=items), empty, now=NOW)
    report = ingest(make_shop(items=[*items, {"item_id": 3, "title": "Hat", "attributes": {"size": 37.5}}]), empty, now=NOW + DAY)
    assert (report.items, report.updated) == (1, 0)


def test_the_same_item_in_two_files_says_in_which(make_shop: Shop, empty: Lake) -> None:
    shop = make_shop()
    for day, price in ((30, 10), (31, 8)):
        (shop / f"items_2026-01-{day}.csv").write_text(f"item_id,title,price\n1,Bowl,{price}\n{day},Cup,1\n{day},Cup,1\n")
    report = ingest(shop, empty, now=NOW)
    assert (report.items, report.refused) == (3, {"items….csv item_id": 3})
    reasons = {row.source: row.reason for row in quarantine.refused(empty, mended=True)}
    where = ", which stands in items_2026-01-30.csv (if items_2026-01-31.csv is the newer file, bring it alone)"
    assert reasons["items_2026-01-31.csv:1"].endswith(f"is there twice: the first row counts{where}")
    assert reasons["items_2026-01-31.csv:3"].endswith("is there twice: the first row counts")
