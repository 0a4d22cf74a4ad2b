"""Scalar indexes: a few rows are found without a scan, and the same ones whether the index is there, old, broken or gone."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from coat_and_hat import DAY, NOW, Shop
from PIL import Image

from moon_ops.lake import changes, lookups
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import image_bytes

Rng = np.random.default_rng


def append(lake: Lake, *ids: int) -> None:
    """Rows of a table with an index, each with the number that says when it was written."""
    first = lake.count("queries")
    lake.append("queries", pa.table({"query_id": pa.array(ids, pa.int64()), "number": pa.array(range(first, first + len(ids)))}))


def numbers(lake: Lake, *ids: int) -> list[int]:
    found: list[int] = changes.rows_of(lake.open("queries"), "query_id", pa.array(ids, pa.int64()), ["number"])["number"].to_pylist()
    return found


def scanned(lake: Lake, *ids: int) -> list[int]:
    where = f"query_id IN ({', '.join(map(str, ids))})"
    found: list[int] = lake.open("queries").to_table(columns=["number"], filter=where, use_scalar_index=False)["number"].to_pylist()
    return found


def indexed(lake: Lake, table: str = "queries") -> dict[str, int]:
    """How many files of a table each index knows."""
    return {i.field_names[0]: sum(len(list(s.fragment_ids)) for s in i.segments) for i in lake.open(table).describe_indices()}


def _none(_: Path) -> None:
    """Nothing happens to it."""


def _cut(place: Path) -> None:
    for file in place.rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:40])


@pytest.fixture
def lake(empty: Lake) -> Lake:
    rng = Rng(0)
    for _ in range(6):
        append(empty, *rng.integers(0, 30, 25).tolist())
    lookups.tend(empty, "queries", least=1)
    assert indexed(empty) == {"query_id": 6}
    return empty


@pytest.mark.parametrize("damage", [_none, _cut, shutil.rmtree], ids=["whole", "cut", "gone"])
def test_the_rows_found_are_those_of_a_scan_in_their_order(lake: Lake, damage: Callable[[Path], None]) -> None:
    append(lake, 3, 99, 3)  # not in the index
    lake.open("queries").delete("number % 5 = 1")
    damage(Path(lake.address("queries")) / "_indices")
    for ids in ([3], [3, 7, 99], [1000], list(range(30))):
        assert numbers(lake, *ids) == scanned(lake, *ids), ids
    assert numbers(lake, 3, 99)[-2:] == [150, 152], "what was written last is among them"
    lake.open("queries").optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
    assert numbers(lake, 3, 7) == scanned(lake, 3, 7)


def test_a_damaged_index_is_told_and_made_anew(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    _cut(Path(lake.address("queries")) / "_indices")
    assert numbers(lake, 3)
    assert "the table is scanned until `moon maintain` has made it anew" in caplog.text
    caplog.clear()
    lookups.tend(lake, "queries", anew=True, least=1)
    assert numbers(lake, 3) == scanned(lake, 3)
    assert not caplog.records


def test_rows_that_are_not_in_an_index_stay_few(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "BEHIND_FILES", 3)
    monkeypatch.setattr(lookups, "SEGMENTS", 2)
    behind = []
    for number in range(16):
        append(lake, 100 + number)
        lookups.tend(lake, "queries", least=1)
        behind.append(len(lake.open("queries").get_fragments()) - indexed(lake)["query_id"])
    assert max(behind) == 3
    assert len(lake.open("queries").describe_indices()[0].segments) <= 3, "segments become one"
    assert [numbers(lake, 100 + number) for number in range(16)] == [[150 + number] for number in range(16)]


def test_small_tables_have_no_index(empty: Lake) -> None:
    append(empty, 1, 2)
    lookups.tend(empty, "queries")
    assert indexed(empty) == {}


def test_a_row_is_inserted_once_also_by_a_damaged_index(empty: Lake) -> None:
    schema = pa.schema([pa.field("version_id", pa.string(), nullable=False), ("item_id", pa.int64())])
    empty.append("excused/v1", pa.table({"version_id": ["a", "b"], "item_id": [1, 2]}, schema=schema))
    lookups.tend(empty, "excused/v1", least=1)
    for damage in (_none, _cut):
        damage(Path(empty.address("excused/v1")) / "_indices")
        lookups.insert(empty.open("excused/v1"), "version_id", pa.table({"version_id": ["b", "c"], "item_id": [2, 3]}, schema=schema))
        assert empty.read("excused/v1")["version_id"].to_pylist() == ["a", "b", "c"]


def picture(colour: str) -> bytes:
    Image.new("RGB", (40, 30), colour).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables of which a whole column is read, from now on."""
    found: list[str] = []
    scan = lance.LanceDataset.to_table

    def to_table(self: lance.LanceDataset, *given: Any, **more: Any) -> pa.Table:
        if not more.get("filter"):
            found.append(Path(self.uri).stem)
        return scan(self, *given, **more)

    monkeypatch.setattr(lance.LanceDataset, "to_table", to_table)
    return found


def test_one_item_is_taken_in_without_reading_the_catalogue(make_shop: Shop, empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file of one item, of which pictures, item and versions are known or new; what a scan would refuse is refused."""
    monkeypatch.setattr("moon_ops.lake.intake.FEW", 0.001)
    monkeypatch.setattr(lookups, "LEAST", 1)
    things = [{"item_id": n, "title": f"thing {n}", "images": [f"{n}.png"]} for n in range(1, 40)]
    shades = {f"{n}.png": picture(f"#{n:06x}") for n in range(1, 40)}
    ingest(make_shop(items=things, pictures=shades, queries=[{"query_id": 1, "timestamp": "2026-05-01", "text": "coat"}]), empty, now=NOW)
    assert indexed(empty, "images") == {"image_id": 1}
    scans = asked(monkeypatch)
    one = make_shop("one", items=[{**things[3], "title": "other"}], pictures={"4.png": shades["4.png"]})
    report = ingest(one, empty, now=NOW + DAY)
    assert (report.updated, report.images, report.items) == (1, 0, 0)
    two = make_shop("two", items=[{"item_id": 99, "title": "new", "images": ["n.png"]}], pictures={"n.png": picture("red")})
    assert (ingest(two, empty, now=NOW + DAY).items, empty.count("images")) == (1, 40)
    events = [{"timestamp": "2026-05-02", "item_id": n, "event": "click", "query_id": q} for n, q in ((4, 1), (4, 7), (1000, 1))]
    three = ingest(make_shop("three", items=[{"item_id": 99, "title": "new"}], events=events), empty, now=NOW + 2 * DAY)
    assert (three.events, three.refused) == (1, {"events.jsonl item_id": 1, "events.jsonl query_id": 1})
    assert not {"items", "images", "queries"} & set(scans)
    content = hashlib.sha256(shades["4.png"]).hexdigest()
    assert list(image_bytes(empty, [content])) == [(content, shades["4.png"])]
