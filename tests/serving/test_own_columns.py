"""A shop's own columns, from its files through ingest, Feast, and training to ``/v1/score``: a line of a recipe each."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moon_ops.cli.trial import running
from moon_ops.ctr.loader import Loader
from moon_ops.ctr.score import Scorer
from moon_ops.embeddings import features
from moon_ops.errors import InputError, StageError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.publication.publication import publish
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks, manifest, promotion, stages
from moon_ops.release.windows import Windows, windows
from moon_ops.serving.request import contexts
from moon_ops.settings import Settings

RECIPE = """
extends = "ctr-cube"
epochs = 1

[features]
weight = { of = "item", kind = "number" }
material = { of = "item", kind = "category" }
tags = { of = "item", kind = "list", length = 3 }
age = { of = "user", kind = "number", default = 40.0 }
city = { of = "user", kind = "category" }
interests = { of = "user", kind = "list" }
relevance = { of = "context", kind = "number" }
hour = { of = "context", kind = "category" }
device = { of = "context", kind = "category", column = "client device" }
shown_with = { of = "context", kind = "list" }
"""
MATERIALS, DEVICES, CITIES = ("wool", "steel", "oak"), ("phone", "desk"), ("Porto", "Lyon")


def widened(shop: Path, out: Path) -> Path:
    """The tiny shop with columns of its own in all its files; what was clicked had been judged relevant."""
    shutil.copytree(shop, out, ignore=shutil.ignore_patterns("oracle*"))
    items = pq.read_table(shop / "items.parquet")
    numbers = range(items.num_rows)
    items = items.append_column("weight", pa.array([float(n % 7) for n in numbers]))
    items = items.append_column("material", pa.array([MATERIALS[n % 3] for n in numbers]))
    items = items.append_column("tags", pa.array([[f"tag {n % 5}", "new"][: 1 + n % 2] for n in numbers]))
    pq.write_table(items, out / "items.parquet")
    events = pq.read_table(shop / "events.parquet")
    rows = events.to_pylist()
    clicked = {(row["session_id"], row["item_id"]) for row in rows if row["event"] == "click"}
    judged = [(0.9 if (row["session_id"], row["item_id"]) in clicked else 0.1) if row["event"] == "impression" else None for row in rows]
    events = events.append_column("relevance", pa.array(judged))
    events = events.append_column("client device", pa.array([DEVICES[n % 2] for n in range(len(rows))]))
    events = events.append_column("shown_with", pa.array(["banner|voucher" if n % 3 else None for n in range(len(rows))]))
    pq.write_table(events, out / "events.parquet")
    users = sorted({row["user_id"] for row in rows if row["user_id"] is not None})
    told = [{"user_id": u, "age": str(20 + u % 50), "city": CITIES[u % 2], "interests": "music | sport"} for u in users[1:]]
    (out / "users.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return out


@pytest.fixture(scope="module")
def home(released: Settings, shop: Path, tmp_path_factory: pytest.TempPathFactory, now: Any, moved: Any) -> Settings:
    """A home with the wider shop's lake and a recipe that declares its columns, published under the released encoder."""
    place = tmp_path_factory.mktemp("own")
    copied = moved(released, place / "home")
    for made in ("lake", "tables", "feature_store", "index"):
        shutil.rmtree(copied.home / made, ignore_errors=True)
    shutil.copytree(released.models, place / "models")
    (place / "models" / "ctr-own.toml").write_text(RECIPE)
    settings = copied.replace(models=place / "models", lake=Lake(str(copied.home / "lake")))
    report = ingest(widened(shop, place / "shop"), settings.lake, now=now)
    assert report.users > 10
    assert not report.refused
    stages.embed(settings, 1, now=now)
    publish(settings, 1, now=now)
    return settings


@pytest.fixture(scope="module")
def times(home: Settings) -> Windows:
    return windows(home.lake, seen_until=encoder_version(home, 1).trained_until)


@pytest.fixture(scope="module")
def trained(home: Settings, times: Windows) -> tuple[Path, int]:
    directory, version = clicks.train_ctr(home, 1, "ctr-own", times, seed=0, changes=["batch=64", "epochs=4"])
    assert version is not None
    return directory, version


@pytest.fixture(scope="module")
def client(home: Settings, times: Windows, trained: tuple[Path, int], now: Any) -> Iterator[httpx.Client]:
    made = manifest.release(home, 1, trained[1], times, now=now)
    promotion.promote(home, made.version, promotion.Wish("test", now.isoformat()))
    with running(home) as opened:
        yield opened


def test_feast_has_the_columns_with_their_types(home: Settings) -> None:
    store = features.open_store(home)
    views = {view.name: {field.name: str(field.dtype) for field in view.features} for view in store.list_feature_views()}
    assert {"weight": "Float64", "material": "String", "tags": "Array(String)"}.items() <= views["item_profile"].items()
    assert views["user_profile"] == {"age": "Float64", "city": "String", "interests": "Array(String)"}
    item = home.lake.read("items", ["item_id", "extra"]).to_pylist()[3]
    found = store.get_online_features(
        features=[f"item_profile:{name}" for name in ("weight", "material", "tags")], entity_rows=[{"item_id": item["item_id"]}]
    ).to_dict()
    assert {name: found[name][0] for name in ("weight", "material", "tags")} == json.loads(item["extra"])


def test_the_model_learns_from_them_and_keeps_its_recipe(home: Settings, times: Windows, trained: tuple[Path, int]) -> None:
    judged = clicks.evaluate_ctr(home, 1, trained[0], times, baseline=None)
    plain, _ = clicks.train_ctr(home, 1, "ctr-cube", times, seed=0, register=False, changes=["batch=64", "epochs=4"])
    assert judged["ctr/auc"] > 0.95 > clicks.evaluate_ctr(home, 1, plain, times)["ctr/auc"], "relevance tells the clicks"
    kept = json.loads((trained[0] / "recipe.json").read_text())
    assert (kept["batch"], kept["extractor"], kept["features"]["age"]["default"]) == (64, "cube", 40.0)
    scorer = Scorer(trained[0])
    assert {feature.name for feature in scorer.own} == set(kept["features"])
    assert scorer.vocabulary.values["material"].tolist() == sorted(MATERIALS)
    assert {"list_tags", "list_interests", "list_shown_with"} <= set(scorer.inputs)


def test_the_service_scores_with_them(client: httpx.Client, home: Settings, trained: tuple[Path, int]) -> None:
    items = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[:3]
    user = home.lake.read("users", ["user_id"])["user_id"].to_pylist()[0]
    body = {"user_id": user, "item_ids": items, "text": "blue lamp", "context": {"device": "phone", "hour": 13, "shown_with": ["voucher"]}}
    each = [{"relevance": 0.1}, {"relevance": 0.9}, {}]
    low, high, unknown = (s["score"] for s in client.post("/v1/score", json={**body, "item_contexts": each}).json()["scores"])
    assert low < unknown < high
    same = client.post("/v1/score", json={**body, "context": {**body["context"], "relevance": 0.9}}).json()["scores"]
    assert same[1]["score"] == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"context": {"relevanse": 1}}, "context.relevanse is no context feature of this click model"),
        ({"context": {"relevance": "high"}}, "context.relevance = 'high' must be a finite number"),
        ({"context": {"shown_with": "banner"}}, "context.shown_with = 'banner' must be a list of texts"),
        ({"item_contexts": [{}, {}]}, "item_contexts has 2 entries for 1 item_ids"),
    ],
)
def test_a_wrong_context_is_named(client: httpx.Client, home: Settings, change: dict[str, Any], named: str) -> None:
    item = home.lake.read("items", ["item_id"])["item_id"].to_pylist()[0]
    answer = client.post("/v1/score", json={"user_id": 1, "item_ids": [item], **change})
    assert answer.status_code == 422
    assert named in answer.json()["error"]


def test_the_loader_has_them_too(home: Settings, times: Windows) -> None:
    """Texts and lists of texts as row numbers of ``values``, 0 for nothing."""
    rows = clicks.impressions(home, 1, times.ctr_until, times.end).rows.select(
        ["user_id", "item_id", "query_id", "event_timestamp", "label"]
    )
    loader = Loader(features.open_store(home), rows, "ctr_v1", vectors=("item",))
    batch = next(loader.batches(32))
    assert batch["weight"].dtype == np.float64
    assert {loader.values["material"][n] for n in batch["material"]} <= {"", *MATERIALS}
    tags = {loader.values["tags"][n] for n in np.unique(batch["tags"])}
    assert "new" in tags
    assert tags <= {"", "new", *(f"tag {n}" for n in range(5))}
    assert set(np.unique(batch["age"][~np.isnan(batch["age"])])) <= {20.0 + n for n in range(50)}


def test_a_column_that_nobody_has_is_an_error_in_training_alone(home: Settings, times: Windows, now: Any, tmp_path: Path) -> None:
    shutil.copytree(home.models, tmp_path / "models")
    (tmp_path / "models" / "ctr-typo.toml").write_text('extends = "ctr-din"\nfeatures.weihgt = { of = "item", kind = "number" }\n')
    wrong = home.replace(models=tmp_path / "models")
    with pytest.raises(StageError, match=r"features.weihgt: ctr_v1 has no such column in item_profile → keep .* run `moon publish"):
        clicks.train_ctr(wrong, 1, "ctr-typo", times, seed=0, register=False)
    publish(wrong, 1, now=now)
    with pytest.raises(InputError, match=r"features.weihgt: no impression trained on knows a value of the item's column weihgt"):
        clicks.train_ctr(wrong, 1, "ctr-typo", times, seed=0, register=False)


def test_a_recipe_taken_away_takes_no_column_away(home: Settings, released: Settings, now: Any) -> None:
    publish(home.replace(models=released.models), 1, now=now)
    names = home.lake.open("features/item_profile").schema.names
    assert {"weight", "material", "tags"} <= set(names)
    assert pa.types.is_list(home.lake.open("features/user_profile").schema.field("interests").type)


def test_a_context_for_a_model_without_any_is_told_to_be_left_out() -> None:
    with pytest.raises(InputError, match=r"context.hour is no context feature of this click model → leave context out: it has none"):
        contexts({"hour": 3}, None, 1, (), dt.datetime(2026, 6, 1, tzinfo=dt.UTC))
