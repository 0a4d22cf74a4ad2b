"""A shop whose ids are texts, the whole way: what went in comes out of searches, scores, items, Feast's frames and the loader."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from moon_ops.cli.trial import running
from moon_ops.ctr.loader import Loader
from moon_ops.embeddings import features
from moon_ops.lake import ids
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.publication import shop_ids
from moon_ops.publication.shop_ids import ShopIds
from moon_ops.settings import Settings

FORMS = ("item/", "-0000-", "Größe", "922337203685477", "00")  # one of each; the sixth is a number


@pytest.fixture(scope="module")
def client(text_home: Settings) -> Iterator[httpx.Client]:
    with running(text_home) as opened:
        yield opened


@pytest.fixture(scope="module")
def catalogue(text_shop: Path) -> dict[Any, dict[str, Any]]:
    """The shop's rows by the ids that JSON should carry."""
    rows = pq.read_table(text_shop / "items.parquet").to_pylist()
    return {ids.wire(ids.clean(row["item_id"])): row for row in rows}


def searched(client: httpx.Client, **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/search", data={"text": "a mug", "k": "200", **more})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_a_search_answers_with_the_shops_ids(client: httpx.Client, catalogue: dict[Any, dict[str, Any]]) -> None:
    found = searched(client)
    assert len(found) == 115
    for hit in found:
        row = catalogue[hit["item_id"]]
        assert (hit["title"], hit["spu_id"]) == (row["title"], ids.wire(ids.clean(row["spu_id"])))
    texts = [hit["item_id"] for hit in found if isinstance(hit["item_id"], str)]
    assert all(any(form in text for text in texts) for form in FORMS)
    assert {type(hit["item_id"]) for hit in found} == {int, str}


def test_a_grouped_search_finds_each_product_once_and_the_nearest_of_it(client: httpx.Client) -> None:
    every, grouped = searched(client), searched(client, group="product")
    first: dict[Any, Any] = {}
    for hit in every:
        first.setdefault(hit["spu_id"], hit["item_id"])
    assert len(first) < len(every)
    assert [(hit["spu_id"], hit["item_id"]) for hit in grouped] == list(first.items())
    few = searched(client, group="product", k="7")
    assert few == grouped[:7]
    assert client.post("/v1/search", data={"text": "mug", "group": "seller"}).status_code == 422


def test_what_a_search_found_can_be_scored_and_shown(client: httpx.Client) -> None:
    asked = [hit["item_id"] for hit in searched(client)]
    body = client.post("/v1/score", json={"user_id": "user/6", "item_ids": asked, "query_id": "query/6", "text": "mug"}).json()
    assert [score["item_id"] for score in body["scores"]] == asked
    shown = client.get("/v1/items", params={"item_id": [str(i) for i in asked]}).json()
    assert [item["item_id"] for item in shown["items"]] == asked
    assert shown["unknown"] == []
    assert client.get("/v1/items?item_id=item%2F6&item_id=none/such").json()["unknown"] == ["none/such"]


def test_a_click_models_scores_are_those_of_the_key(client: httpx.Client) -> None:
    """A number, its digits, and a whole float are one id."""
    known = next(hit["item_id"] for hit in searched(client) if isinstance(hit["item_id"], int))
    bodies = [client.post("/v1/score", json={"user_id": "user/6", "item_ids": [i]}).json() for i in (known, str(known), float(known))]
    assert bodies[0]["scores"][0]["item_id"] == known
    assert bodies[0] == bodies[1] == bodies[2]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("no/such", "item_ids: no/such is no item of the catalogue"),
        (2**60 + 1, f"item_ids: {2**60 + 1} is no item"),
        ("", "is not an id"),
        ("-3", "is not an id"),
        (1.5, "is a number with a fraction"),
        (2.0**60, "stored as a float"),
        (None, "is not an id"),
        ([1], "is not an id"),
    ],
)
def test_an_id_that_is_none_is_named(client: httpx.Client, item: Any, says: str) -> None:
    answer = client.post("/v1/score", json={"user_id": 1, "item_ids": [item]})
    assert answer.status_code == 422
    assert says in answer.json()["error"]


def test_without_the_lake_searches_still_have_the_shops_ids(text_home: Settings, tmp_path: Path, client: httpx.Client) -> None:
    home = tmp_path / "home"
    shutil.copytree(text_home.home, home, symlinks=True)
    whole = [(hit["item_id"], hit["spu_id"]) for hit in searched(client, group="product")]
    shutil.rmtree(home / "lake")
    lost = text_home.replace(home=home, lake=Lake(str(home / "lake")), tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    with running(lost) as opened:
        assert [(hit["item_id"], hit["spu_id"]) for hit in searched(opened, group="product")] == whole


def test_a_home_published_by_an_older_version_is_served_and_says_what_is_lacking(copied: Settings) -> None:
    shop_ids.place(copied).unlink()
    with running(copied) as opened:
        every = opened.post("/v1/search", data={"text": "a mug", "k": "5"}).json()
        grouped = opened.post("/v1/search", data={"text": "a mug", "k": "5", "group": "product"}).json()
        assert "degraded" not in every
        assert [hit["spu_id"] for hit in every["items"]] == [None] * 5
        assert [hit["item_id"] for hit in grouped["items"]] == [hit["item_id"] for hit in every["items"]]
        assert "not grouped by product" in grouped["degraded"]
        shop_ids.publish(copied, dt.datetime.now(dt.UTC), full=False)
        assert None not in [hit["spu_id"] for hit in opened.post("/v1/search", data={"text": "a mug", "k": "5"}).json()["items"]]


def test_an_entity_frame_is_made_of_the_shops_ids(text_home: Settings, catalogue: dict[Any, dict[str, Any]]) -> None:
    store = features.open_store(text_home)
    shop = pd.Series(list(catalogue)[:8])
    frame = pd.DataFrame({"item_id": ids.keys("item", shop), "event_timestamp": pd.Timestamp("2026-05-30", tz="UTC")})
    found = store.get_historical_features(frame, ["item_profile:spu_id", "item_profile:price"]).to_df()
    named = ids.named(features.lake_of(store), "item", found["item_id"])
    products = ids.named(features.lake_of(store), "product", found["spu_id"])
    for item, product, price in zip(named, products, found["price"], strict=True):
        row = catalogue[ids.wire(item)] if item is not None else {}
        assert (ids.clean(row["spu_id"]), row["price"]) == (product, price)


def test_a_loader_takes_the_shops_ids_and_gives_them_back(text_home: Settings, text_shop: Path) -> None:
    store, events = features.open_store(text_home), pq.read_table(text_shop / "events.parquet").to_pandas()
    clicks = events[(events["event"] == "click") & events["query_id"].notna()].sort_values("timestamp").tail(40)
    asked = clicks[["user_id", "item_id", "query_id"]].assign(event_timestamp=pd.to_datetime(clicks["timestamp"], utc=True))
    keys = asked.assign(**{f"{kind}_id": ids.keys(kind, asked[f"{kind}_id"]) for kind in ("user", "item", "query")})
    loaders = [Loader(store, frame, "ctr_v1", behaviors=20, seen_by_encoder=True) for frame in (asked, keys)]
    (batch,), (same,) = ([*loader.batches(64)] for loader in loaders)
    assert all(np.array_equal(batch[name], same[name], equal_nan=same[name].dtype.kind == "f") for name in same)
    assert batch["item_embedding"].any(axis=1).all()
    for kind in ("user_id", "item_id", "query_id"):
        given = [ids.clean(cell) for cell in asked[kind]]
        assert loaders[0].shop_ids(kind, batch[kind]).tolist() == given
    behaviours = loaders[0].shop_ids("item_ids", batch["item_ids"])
    assert behaviours.shape == (40, 20)
    clicked = {ids.clean(i) for i in events[events["event"] == "click"]["item_id"]}
    assert {i for i in behaviours.flat if i is not None} <= clicked
    assert None in behaviours


def test_the_lake_knows_every_id_that_was_given(text_home: Settings, text_shop: Path) -> None:
    lake = text_home.lake
    for table, column, of in (("items", "item_id", "items"), ("queries", "query_id", "queries"), ("events", "session_id", "events")):
        given = {ids.clean(i) for i in pq.read_table(text_shop / f"{table}.parquet")[column].to_pylist() if i is not None}
        kept = set(lake.read(of, [column])[column].to_pylist()) - {None}
        assert set(ids.named(lake, ids.KINDS[column], sorted(kept))) == given


def test_a_shop_of_numbers_has_no_text_to_look_up(released: Settings, now: dt.datetime) -> None:
    assert not released.lake.exists("ids")
    known = ShopIds(released)
    keys = items_as_of(released.lake, now, ["item_id"])["item_id"].to_pylist()
    assert known.item(keys) == keys
    assert known._texts is False
    assert known._variants is True


def test_a_service_sees_new_ids_at_once_and_a_damaged_file_is_made_anew(copied: Settings, now: dt.datetime) -> None:
    known, file = ShopIds(copied), shop_ids.place(copied)
    assert known.item([ids.key("new/1")]) == [str(ids.key("new/1"))]
    with shop_ids._written(file) as connection:
        shop_ids._many(connection, shop_ids.NAME, [("item", ids.key("new/1"), "new/1")])
    assert known.item([ids.key("new/1"), 2**53, 2**53 + 1]) == ["new/1", 2**53, str(2**53 + 1)]
    whole = ShopIds(copied).products_of(list(range(115)))
    file.write_bytes(b"no database" * 1000)
    shop_ids.publish(copied, now, full=False)
    assert ShopIds(copied).products_of(list(range(115))) == whole
