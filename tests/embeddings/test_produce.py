"""Bulk production: every item version gets its vector once, whatever is repeated, killed or run twice at once."""

from __future__ import annotations

import datetime as dt
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from four_items import DAY, ITEMS, MAY, PICTURES, QUERIES, Shop, due_titles, embed, filled
from numpy.typing import NDArray
from PIL import Image

from moon_ops.embeddings import portions, produce, vector_tables
from moon_ops.embeddings.produce import EmbedReport
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import ContractError, StageError
from moon_ops.inputs import images
from moon_ops.inputs.contract import Sample, item_sample
from moon_ops.inputs.regions import DETECTORS
from moon_ops.lake import changes
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP, embeddings_schema
from moon_ops.lake.tables import image_bytes


@pytest.fixture
def lake(make_shop: Shop, tmp_path: Path) -> Lake:
    return filled(make_shop, tmp_path / "lake")


def stored(lake: Lake, table: str = "embeddings/v1") -> NDArray[np.float32]:
    return np.array(lake.read(table)["embedding"].to_pylist(), np.float32)


def test_every_item_is_embedded_once(lake: Lake, runtime: Runtime) -> None:
    assert embed(lake, runtime) == EmbedReport("embeddings/v1", runtime.contract_id, embedded=4, total=4, looked_at=4)
    version = lake.open("embeddings/v1").version
    assert embed(lake, runtime) == EmbedReport("embeddings/v1", runtime.contract_id, embedded=0, total=4)
    assert lake.open("embeddings/v1").version == version, "a run with nothing to do commits nothing"
    assert vector_tables.contract_of(lake, 1) == runtime.contract_id
    rows = lake.read("embeddings/v1").drop_columns(["embedding", "version_id"]).to_pylist()
    items = lake.read("items").to_pylist()
    assert rows == [
        {"item_id": i["item_id"], "content_hash": i["content_hash"], "event_timestamp": MAY, "created": MAY + 10 * DAY} for i in items
    ]


def test_vectors_are_those_of_the_runtime_on_the_same_samples(lake: Lake, runtime: Runtime) -> None:
    embed(lake, runtime)
    size = runtime.contract.layout.picture_size
    wanted = {i for item in lake.read("items").to_pylist() for i in item["image_ids"] or []}
    pixels = {name: images.pixels(images.decode(content), size) for name, content in image_bytes(lake, sorted(wanted))}
    assert len(pixels) == 3
    expected = runtime.embed([item_sample(item) for item in lake.read("items").to_pylist()], pixels)
    assert stored(lake) == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(stored(lake), axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_an_encoder_of_two_views_reads_the_picture_and_its_crop(lake: Lake, core_runtime: Runtime, make_shop: Shop) -> None:
    """Items and queries alike; the crop is that of the contract's detector."""
    drawn = Image.new("RGB", (80, 80), "white")
    drawn.paste((200, 30, 30), (40, 10, 70, 60))
    drawn.paste((30, 30, 200), (40, 30, 55, 60))
    drawn.save(content := io.BytesIO(), "PNG")
    items = [{"item_id": 5, "title": "Red coat", "images": "coat.png"}]
    queries = [{"query_id": 8, "timestamp": "2026-05-03T10:00:00", "image": "coat.png"}]
    ingest(make_shop("coats", items=items, queries=queries, pictures={"coat.png": content.getvalue()}), lake, now=MAY + 3 * DAY)
    embed(lake, core_runtime)
    produce.embed_queries(lake, core_runtime, 1, now=MAY + 5 * DAY, workers=1)
    crop = drawn.crop(DETECTORS["saliency"].box(drawn))
    pixels = {"coat": np.stack([images.pixels(drawn, 32), images.pixels(crop, 32)])}
    item, query, whole = core_runtime.embed(
        [Sample("Red coat", ("coat",)), Sample("", ("coat",)), Sample("", ("whole",))],
        {**pixels, "whole": np.stack([images.pixels(drawn, 32)] * 2)},
    )
    assert lake.read("embeddings/v1", ["embedding"], "item_id = 5")["embedding"].to_pylist()[0] == pytest.approx(item, abs=1e-5)
    found = lake.read("query_embeddings/v1", ["embedding"], "query_id = 8")["embedding"].to_pylist()[0]
    assert found == pytest.approx(query, abs=1e-5)
    assert np.abs(found - whole).max() > 1e-3, "the whole picture twice is another vector"


def test_an_item_that_is_erased_while_it_is_embedded_does_not_come_back(
    lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = portions.Items.commit

    def erased_meanwhile(self: portions.Items, rows: pa.Table, made: Any) -> Any:
        changes.mark(self.lake, "items", erasures=1)
        self.lake.open("items").delete("item_id = 2")
        return commit(self, rows, made)

    monkeypatch.setattr(portions.Items, "commit", erased_meanwhile)
    assert embed(lake, runtime).embedded == 3
    assert sorted(lake.read("embeddings/v1")["item_id"].to_pylist()) == [1, 3, 4]
    assert lake.count("excused/v1") == 0


def test_no_vector_is_committed_while_an_item_is_being_erased(lake: Lake, runtime: Runtime) -> None:
    with ThreadPoolExecutor(1) as pool:
        with lake.erasing():
            run = pool.submit(embed, lake, runtime)
            with pytest.raises(TimeoutError):
                run.result(timeout=2)
            assert lake.count("embeddings/v1") == 0
        assert run.result(timeout=60).embedded == 4


def test_runs_that_overlap_insert_each_row_once(lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs look, then all of them commit at the same moment: what each was about to insert, the others were, too."""
    together, insert = threading.Barrier(4), vector_tables.insert

    def at_once(*arguments: Any) -> None:
        if arguments[1] == "embeddings/v1":
            together.wait(timeout=60)
        insert(*arguments)

    for table in ("embeddings/v1", "excused/v1"):
        vector_tables.create(lake, table, runtime)
    monkeypatch.setattr(vector_tables, "insert", at_once)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: embed(lake, runtime), range(4)))
    assert [r.total for r in reports] == [4] * 4
    assert sorted(lake.read("embeddings/v1")["item_id"].to_pylist()) == [1, 2, 3, 4]


def test_a_killed_run_is_finished_by_the_next(lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    insert, calls = vector_tables.insert, iter([1])

    def killed_at_the_second_commit(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        insert(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(portions, "SIZE", 3)
        patch.setattr(vector_tables, "insert", killed_at_the_second_commit)
        with pytest.raises(KeyboardInterrupt):
            embed(lake, runtime)
    assert due_titles(lake) == ["<image> Lamp"]
    assert (embed(lake, runtime).embedded, lake.count("embeddings/v1")) == (1, 4)


def test_a_run_that_could_not_finish_says_so(lake: Lake, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_tables, "insert", lambda *arguments: None)
    with pytest.raises(StageError, match="4 item versions still have no vector under encoder 1"):
        embed(lake, runtime)


def test_another_encoders_contract_is_refused(lake: Lake, runtime: Runtime, other_runtime: Runtime) -> None:
    embed(lake, runtime)
    produce.embed_queries(lake, runtime, 1, now=MAY)
    refused = f"contract {other_runtime.contract_id} was about to meet contract {runtime.contract_id}"
    with pytest.raises(ContractError, match=f"table embeddings/v1: {refused}"):
        embed(lake, other_runtime)
    with pytest.raises(ContractError, match=f"table query_embeddings/v1: {refused}"):
        produce.embed_queries(lake, other_runtime, 1, now=MAY)
    assert produce.embed(lake, other_runtime, 2, now=MAY, workers=1).contract_id == other_runtime.contract_id


def test_queries_are_embedded_once(lake: Lake, runtime: Runtime, make_shop: Shop) -> None:
    report = produce.embed_queries(lake, runtime, 1, now=MAY + DAY, workers=1)
    assert report == EmbedReport("query_embeddings/v1", runtime.contract_id, embedded=3, total=3, looked_at=3)
    assert produce.embed_queries(lake, runtime, 1, now=MAY + DAY, workers=1).embedded == 0
    more = [*QUERIES, {"query_id": 9, "timestamp": "2026-05-03T10:00:00", "text": "lamp"}]
    ingest(make_shop("more", items=ITEMS, queries=more, pictures=PICTURES), lake, now=MAY + 3 * DAY)
    assert produce.embed_queries(lake, runtime, 1, now=MAY + 4 * DAY, workers=1).embedded == 1
    table = lake.read("query_embeddings/v1").sort_by("query_id")
    assert table["query_id"].to_pylist() == [1, 2, 3, 9]
    assert table["event_timestamp"].to_pylist()[3] == MAY + 2 * DAY + dt.timedelta(hours=10)
    picture = {name: images.pixels(images.decode(content), 32) for name, content in image_bytes(lake, _image_ids(lake))}
    (blue,) = picture
    expected = runtime.embed([Sample("red dress"), Sample("", (blue,)), Sample("boots", (blue,)), Sample("lamp")], picture)
    assert np.array(table["embedding"].to_pylist()) == pytest.approx(expected, abs=1e-5)


def _image_ids(lake: Lake) -> list[str]:
    return sorted({q["image_id"] for q in lake.read("queries").to_pylist() if q["image_id"]})


def test_a_table_without_a_contract_is_refused(lake: Lake, runtime: Runtime) -> None:
    lake.append("embeddings/v1", embeddings_schema(runtime.dim).empty_table())
    with pytest.raises(ContractError, match=f"contract {runtime.contract_id} was about to meet contract"):
        embed(lake, runtime)


def test_timestamps_are_those_of_the_lake(lake: Lake, runtime: Runtime) -> None:
    embed(lake, runtime)
    schema = lake.open("embeddings/v1").schema
    assert [schema.field(name).type for name in ("event_timestamp", "created")] == [STAMP, STAMP]


def test_an_item_is_embedded_from_what_can_be_read_or_excused_with_the_reason(lake: Lake, runtime: Runtime) -> None:
    """One picture of item 1 is broken in the lake; item 4 has nothing but a broken one."""
    broken, bad = "0" * 64, b"\xff\xd8\xff not a picture"
    row = {"image_id": broken, "bytes": bad, "format": "JPEG", "width": 1, "height": 1, "phash": "", "created": MAY}
    lake.append("images", pa.Table.from_pylist([row], schema=SCHEMAS["images"]))
    items = lake.read("items").to_pylist()
    odd = [
        {**items[0], "item_id": 7, "image_ids": [broken, items[0]["image_ids"][0]], "content_hash": "seven"},
        {**items[3], "item_id": 8, "title": "", "image_ids": [broken], "content_hash": "eight"},
    ]
    odd[1] |= dict.fromkeys(("category", "brand", "description", "attributes"))
    lake.append("items", pa.Table.from_pylist(odd, schema=SCHEMAS["items"]))
    report = embed(lake, runtime)
    assert (report.embedded, report.excused, report.unread) == (5, 1, 1)
    (excused,) = lake.read("excused/v1").to_pylist()
    assert (excused["item_id"], excused["content_hash"], excused["created"]) == (8, "eight", MAY + 10 * DAY)
    assert broken in excused["reason"]
    whole = {**odd[0], "image_ids": odd[0]["image_ids"][1:]}
    size = runtime.contract.layout.picture_size
    pixels = {name: images.pixels(images.decode(content), size) for name, content in image_bytes(lake, whole["image_ids"])}
    found = lake.read("embeddings/v1", ["embedding"], "item_id = 7")["embedding"].to_pylist()[0]
    assert found == pytest.approx(runtime.embed([item_sample(whole)], pixels)[0], abs=1e-5)
    assert embed(lake, runtime).looked_at == 0, "an excused item is not tried again until it changes"


def test_a_table_of_an_older_layout_is_refused_with_what_to_do(lake: Lake, runtime: Runtime) -> None:
    old = vector_tables.schema_of("embeddings/v1", runtime.dim, runtime.contract_id)
    lake.append("embeddings/v1", old.remove(0).empty_table())
    with pytest.raises(StageError, match=r"an older moon_ops wrote it.* → remove .*embeddings/v1\.lance"):
        embed(lake, runtime)
