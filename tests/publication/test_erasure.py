"""Forgetting an item: no place knows it any more, not even a tagged or older version, and nothing else is lost."""

from __future__ import annotations

import datetime as dt
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from moon_ops import tasks
from moon_ops.cli.doctor import examine
from moon_ops.embeddings import features, online_store
from moon_ops.embeddings.index import ItemIndex
from moon_ops.errors import InputError
from moon_ops.files import locked
from moon_ops.lake import changes, fetches, ids, statistics
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import erasure, maintenance, marks, places, publication
from moon_ops.publication.erasure import Receipt, erase
from moon_ops.publication.traces import Target
from moon_ops.settings import Settings


def bytes_with(home: Path, needle: bytes) -> list[Path]:
    return [p for p in sorted((home / "lake").rglob("*")) if p.is_file() and needle in p.read_bytes()]


LONE = 987_654  # a user who has clicked nothing else


def behaviour(settings: Settings) -> dict[str, Any]:
    """What the online store knows of that user."""
    found: dict[str, Any] = features.open_store(settings).get_online_features(["user_behavior:item_ids"], [{"user_id": LONE}]).to_dict()
    return found


@pytest.fixture
def erased(copied: Settings, now: dt.datetime) -> tuple[Settings, dict[str, Any], Receipt]:
    """A home that has forgotten an item that was bought and clicked; the item as it was."""
    publication.publish(copied, 1, now=now)
    clicked = copied.lake.read("events", ["item_id"], "event = 'click'")["item_id"].to_pylist()
    item = next(row for row in items_as_of(copied.lake, now).to_pylist() if row["item_id"] in clicked)
    refused = {
        "source": "items:7",
        "row": json.dumps(
            {"item_id": item["source_id"] or item["item_id"], "title": "it's a secret", "images": "http://a.example/lost.png"}
        ),
    }
    other = {"source": "items:8", "row": json.dumps({"item_id": "another", "title": "kept"})}
    rows = [{**row, "column": "images", "reason": "broken", "created": now} for row in (refused, other)]
    copied.lake.append("quarantine", pa.Table.from_pylist(rows, schema=SCHEMAS["quarantine"]))
    known = (("shown", item["image_ids"][0]), ("lost", None), ("another", "f" * 64))
    fetches.write(copied.lake, [fetches.Fetch(f"http://a.example/{name}.png", image_id) for name, image_id in known])
    click = copied.lake.read("events", where=f"event = 'click' AND item_id = {item['item_id']}").to_pylist()[0]
    lone = pa.Table.from_pylist([{**click, "user_id": LONE, "query_id": None}], schema=SCHEMAS["events"])
    copied.lake.append("events", lone)
    publication.publish(copied, 1, now=now)
    assert behaviour(copied)["item_ids"] == [[item["item_id"]]]
    return copied, item, erase(copied, item["item_id"], now=now)


def test_the_receipt_lists_every_place(erased: tuple[Settings, dict[str, Any], Receipt]) -> None:
    settings, item, receipt = erased
    places = receipt.places
    assert places["lake/items"] >= 1
    assert places["lake/embeddings/v1"] >= 1
    assert places["online store"] >= 3, "profile, statistics and vector"
    assert (places["tables/items-v1"], places["index/v1"]) == (1, 1)
    assert places["lake/events"] > 0
    assert places["lake/images"] == len(item["image_ids"])
    (written,) = (settings.home / "receipts").iterdir()
    assert json.loads(written.read_text())["places"] == places


def test_neither_refused_rows_nor_a_lone_users_sequence_name_it(erased: tuple[Settings, dict[str, Any], Receipt]) -> None:
    settings, _, receipt = erased
    assert receipt.places["lake/quarantine"] == 1
    assert [row for row in settings.lake.read("quarantine")["row"].to_pylist() if "secret" in row] == []
    assert settings.lake.count("quarantine") >= 1
    assert bytes_with(settings.home, b"it's a secret") == []
    assert behaviour(settings)["item_ids"] == [None]


def test_addresses_of_its_pictures_are_forgotten(erased: tuple[Settings, dict[str, Any], Receipt]) -> None:
    settings, _, receipt = erased
    assert receipt.places["lake/fetches"] == 2
    assert settings.lake.read("fetches")["address"].to_pylist() == ["http://a.example/another.png"]
    assert bytes_with(settings.home, b"http://a.example/lost.png") == bytes_with(settings.home, b"http://a.example/shown.png") == []


def test_no_place_knows_the_item_any_more(erased: tuple[Settings, dict[str, Any], Receipt], now: dt.datetime) -> None:
    settings, item, _ = erased
    number = item["item_id"]
    for name in maintenance.tables(settings.lake):
        table = settings.lake.open(name)
        for version in table.versions():
            old = lance.dataset(settings.lake.address(name), version=version["version"])
            if "item_id" in old.schema.names:
                assert old.count_rows(filter=f"item_id = {number}") == 0, (name, version["version"])
            if "item_ids" in old.schema.names:
                assert not any(number in row for row in old.to_table(columns=["item_ids"])["item_ids"].to_pylist())
    assert bytes_with(settings.home, item["image_ids"][0].encode()) == []
    store = features.open_store(settings)
    online = store.get_online_features(["item_embedding_v1:embedding", "item_profile:price"], [{"item_id": number}]).to_dict()
    assert (online["embedding"], online["price"]) == ([None], [None])
    assert places.tables(settings, 1).items.rows(np.array([number])).tolist() == [-1]


def test_all_other_items_stay_and_the_release_keeps_its_tag(erased: tuple[Settings, dict[str, Any], Receipt], now: dt.datetime) -> None:
    settings, item, _ = erased
    ids = items_as_of(settings.lake, now, ["item_id"])["item_id"].to_numpy()
    assert len(ids) == 114
    assert item["item_id"] not in ids
    assert (places.tables(settings, 1).items.rows(ids) >= 0).all()
    tagged = settings.lake.open("embeddings/v1")
    assert lance.dataset(tagged.uri, version=tagged.tags.list()["release-1"]["version"]).count_rows() == tagged.count_rows()


def test_who_embeds_meanwhile_is_told(erased: tuple[Settings, dict[str, Any], Receipt]) -> None:
    assert changes.erasures(erased[0].lake) == 1


def test_a_mistyped_id_costs_no_table_its_history(copied: Settings, now: dt.datetime) -> None:
    publication.publish(copied, 1, now=now)
    before = {name: [v["version"] for v in copied.lake.open(name).versions()] for name in maintenance.tables(copied.lake)}
    tag = copied.lake.open("embeddings/v1").tags.list()["release-1"]["version"]
    with pytest.raises(InputError, match="is in no place"):
        erase(copied, 987_654_321, now=now)
    assert {name: [v["version"] for v in copied.lake.open(name).versions()] for name in before} == before
    assert copied.lake.open("embeddings/v1").tags.list()["release-1"]["version"] == tag


def test_an_item_is_named_by_the_shops_id(copied: Settings) -> None:
    """Also where an older version kept it under another number."""
    schema = SCHEMAS["items"]
    row = copied.lake.read("items").slice(0, 1).to_pylist()[0] | {"item_id": 77_000_000_001, "source_id": "mug-'1'"}
    copied.lake.append("items", pa.Table.from_pylist([row], schema=schema))
    assert erasure.target(copied.lake, "item", "mug-'1'") == Target("item", 77_000_000_001, "mug-'1'")
    assert erasure.target(copied.lake, "item", "12") == Target("item", 12, 12)
    assert erasure.target(copied.lake, "user", "12/a").key == ids.key("12/a")
    with pytest.raises(InputError, match=r"ITEM_ID = '-5' is not an id"):
        erasure.target(copied.lake, "item", "-5")


def test_a_killed_erasure_is_completed_with_one_receipt(copied: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the lake has forgotten the item and the index has not: the receipt names the rows of both runs, once."""
    publication.publish(copied, 1, now=now)
    clicked = copied.lake.read("events", ["item_id"], "event = 'click'")["item_id"].to_pylist()[0]
    events = copied.lake.open("events").count_rows(filter=f"item_id = {clicked}")
    with monkeypatch.context() as patched:
        patched.setattr(erasure, "_withdraw", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(copied, clicked, now=now)
    places = erase(copied, clicked, now=now).places
    assert (places["lake/events"], places["index/v1"], places["tables/items-v1"]) == (events, 1, 1)
    assert places["online store"] >= 3
    (receipt,) = (copied.home / "receipts").iterdir()
    with pytest.raises(InputError, match="is in no place") as refused:
        erase(copied, clicked, now=now)
    assert str(receipt) in refused.value.action
    assert list((copied.home / "receipts").iterdir()) == [receipt]


def test_a_killed_erasure_is_completed_by_the_next_publication_of_the_dag(
    copied: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Index and table still have the item, and no publication alone would take it out."""
    publication.publish(copied, 1, now=now)
    item = copied.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    with monkeypatch.context() as patched:
        patched.setattr(erasure, "_withdraw", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(copied, item, now=now)
    assert [str(who) for who in erasure.unfinished(copied)] == [str(item)]
    assert {name: good for name, good, _ in examine(copied, now)}["erasures"] is False
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    tasks.publish_for_champion(now.isoformat())
    assert erasure.unfinished(copied) == []
    assert not ItemIndex.open(places.index_place(copied, 1)).holds(item)
    with locked(copied.home / erasure.LOCK):
        (copied.home / "receipts" / f"{item}.begun.json").write_text("{}")
        assert erasure.finish(copied, now=now) == [], "one that runs is left to whoever runs it"


@pytest.mark.parametrize("killed_in", ["derive", "cleanup"])
def test_whoever_has_clicked_nothing_else_is_forgotten_by_the_run_that_completes_a_killed_one(
    copied: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """The rows that named the users are gone by then."""
    item = copied.lake.read("events", ["item_id"], "event = 'click'")["item_id"].to_pylist()[0]
    click = copied.lake.read("events", where=f"event = 'click' AND item_id = {item}").to_pylist()[0]
    copied.lake.append("events", pa.Table.from_pylist([{**click, "user_id": LONE}], schema=SCHEMAS["events"]))
    publication.publish(copied, 1, now=now)
    with monkeypatch.context() as patched:
        if killed_in == "derive":
            patched.setattr(statistics, "derive", Mock(side_effect=KeyboardInterrupt))
        else:
            patched.setattr(maintenance, "compact", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase(copied, item, now=now)
    erase(copied, item, now=now)
    assert behaviour(copied)["item_ids"] == [None]


def test_who_clicks_while_an_erasure_waits_is_forgotten(copied: Settings, now: dt.datetime) -> None:
    """An ingestion holds it up, and a publication shows the newcomer's first click meanwhile."""
    item = copied.lake.read("events", ["item_id"], "event = 'click'")["item_id"].to_pylist()[0]
    click = copied.lake.read("events", where=f"event = 'click' AND item_id = {item}").to_pylist()[0]
    with ThreadPoolExecutor(1) as pool:
        with copied.lake.one_writer():
            run = pool.submit(erase, copied, item, now=now)
            time.sleep(2)
            copied.lake.append("events", pa.Table.from_pylist([{**click, "user_id": LONE}], schema=SCHEMAS["events"]))
            publication.publish(copied, 1, now=now)
            assert behaviour(copied)["item_ids"] == [[item]]
        run.result(timeout=120)
    assert behaviour(copied)["item_ids"] == [None]


def test_nothing_is_handed_over_while_the_online_store_forgets(copied: Settings, now: dt.datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication that read the item before it was erased hands it over first, and then it is forgotten."""
    publication.publish(copied, 1, now=now)
    item = items_as_of(copied.lake, now, ["item_id"])["item_id"].to_pylist()[0]
    order: list[str] = []
    forget, turn = online_store.forget, marks.views(copied, [1])[0]
    monkeypatch.setattr(online_store, "forget", lambda *arguments: order.append("forgotten") or forget(*arguments))  # type: ignore[func-returns-value]
    with ThreadPoolExecutor(1) as pool:
        with turn:  # of the first view
            run = pool.submit(erase, copied, item, now=now)
            with pytest.raises(TimeoutError):
                run.result(timeout=8)
            order.append("handed over")
        run.result(timeout=120)
    assert order[:2] == ["handed over", "forgotten"]


def test_what_a_killed_writer_has_left_of_a_user_goes_too(copied: Settings, now: dt.datetime) -> None:
    """Files of no version, also of a table that has no row of the user yet."""
    clicks = copied.lake.read("events", where="event = 'click'")
    user = clicks["user_id"][0].as_py()
    left = []
    for name, rows in (("events", clicks.filter(pc.equal(clicks["user_id"], user))), ("queries", copied.lake.open("queries").head(1))):
        files, before = Path(copied.lake.open(name).uri) / "data", set((Path(copied.lake.open(name).uri) / "data").iterdir())
        lance.fragment.write_fragments(rows, copied.lake.open(name).uri, schema=rows.schema, mode="append")
        left += set(files.iterdir()) - before
    assert len(left) == 2
    erase(copied, Target("user", user, user), now=now)
    assert not [place for place in left if place.exists()]


def test_nothing_is_begun_where_there_is_no_lake(tmp_path: Path, now: dt.datetime) -> None:
    with pytest.raises(InputError, match="ITEM_ID = 5 is in no place: the lake is empty"):
        erase(Settings(home=tmp_path), 5, now=now)
    assert not erasure.unfinished(Settings(home=tmp_path))


def test_an_item_that_nobody_knows_is_refused(copied: Settings, now: dt.datetime) -> None:
    with pytest.raises(InputError, match=r"ITEM_ID = 12345678901 is in no place"):
        erase(copied, 12345678901, now=now)
