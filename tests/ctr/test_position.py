"""The place in the list explains a part of the clicks in training, and is not there when a model scores."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file
from toy_clicks import ITEMS, MAY, QUERIES, impressions, unit

from moon_ops.columns import SHOWN_AT
from moon_ops.ctr import metrics, train
from moon_ops.ctr.dataset import PLACES, places
from moon_ops.ctr.impressions import impressions as impressions_of
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import InputError
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.recipes.ctr import CtrRecipe

Wide = Callable[[pa.Table], Joined]
RECIPE: dict[str, Any] = {"epochs": 12, "batch": 64, "learning_rate": 1e-2, "embedding_dim": 4, "hidden": (16,), "behaviors": 3}


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(*(RepresentationTable(np.arange(n), unit(n, seed), "c-one") for n, seed in ((ITEMS, 0), (QUERIES, 1))))


@pytest.fixture(scope="module")
def shown() -> pa.Table:
    """Twenty items in ten places; the odd ones are better and shown further down, where half as many look at each place."""
    drawn, items = np.random.default_rng(0), np.arange(2000) % 20
    place = np.where(items % 2 == 1, drawn.integers(3, 6, 2000), drawn.integers(1, 4, 2000))
    clicked = drawn.random(2000) < np.where(items % 2 == 1, 0.9, 0.5) * 0.5 ** (place - 1)
    return impressions(items, items, clicked).append_column(SHOWN_AT, pa.array(place))


def trained(shown: pa.Table, tables: Tables, wide: Wide, out: Path, **changed: Any) -> Scorer:
    recipe = CtrRecipe(name="toy", **{**RECIPE, "extractor": "din", "validation": 0.0, **changed})
    train.train(wide(shown), tables, out, recipe, origin=train.Origin("ctr_v1", MAY, MAY), seed=0)
    return Scorer(out, threads=1)


def test_places_are_coded_and_what_is_not_known_is_nothing() -> None:
    rows = pa.table({SHOWN_AT: pa.array([None, 0, 1, 49, 50, 1_000_000])})
    assert places(rows).tolist() == [0, 1, 2, PLACES, PLACES + 1, PLACES + 1]
    assert places(pa.table({"item_id": [1, 2]})).tolist() == [0, 0]


def test_a_model_that_knows_the_place_finds_the_better_items(shown: pa.Table, tables: Tables, wide: Wide, tmp_path: Path) -> None:
    """Further down the better ones are clicked less often, so without the place they seem the worse."""
    better = (np.arange(20) % 2 == 1).astype(np.int64)
    aucs = {}
    for position in (False, True):
        scorer = trained(shown, tables, wide, tmp_path / str(position), position=position)
        assert "position" not in scorer.inputs
        rows = scorer.encode(wide(shown.slice(0, 20).drop_columns(SHOWN_AT)), tables)
        aucs[position] = metrics.auc(better, scorer.score(rows))
    assert aucs[True] > 0.8 > 0.2 > aucs[False], aucs
    weight = load_file(tmp_path / "True" / "model.safetensors")["position.weight"]
    assert (weight[2:6].diff() < 0).all(), "each place is looked at less than the one above it"


def test_scores_stay_calibrated_without_the_place(shown: pa.Table, tables: Tables, wide: Wide, tmp_path: Path) -> None:
    scorer = trained(shown, tables, wide, tmp_path / "model", position=True, extractor="make", epochs=2, pretrain_epochs=1)
    found = scorer.score(scorer.encode(wide(shown), tables)).mean()
    assert found == pytest.approx(np.mean(shown["label"].to_pylist()), rel=0.02)


def test_places_that_nobody_noted_are_refused(shown: pa.Table, tables: Tables, wide: Wide, tmp_path: Path) -> None:
    for rows in (shown.drop_columns(SHOWN_AT), shown.set_column(shown.num_columns - 1, SHOWN_AT, pa.nulls(2000, pa.int64()))):
        with pytest.raises(InputError, match="position = true, but no impression trained on knows its place in the list"):
            trained(rows, tables, wide, tmp_path / "model", position=True)


def test_a_place_cannot_be_a_feature_and_a_bias() -> None:
    given: dict[str, Any] = {"of": "context", "kind": "number"}
    with pytest.raises(ValueError, match=r"position = True must be false where features\.place reads the position, too"):
        CtrRecipe(name="toy", extractor="din", **RECIPE, position=True, features={"place": {**given, "column": "position"}})  # type: ignore[dict-item]


def test_only_a_recipe_that_wants_the_place_gets_it(tmp_path: Path) -> None:
    """As events have it; an event without one is of an unknown place."""
    lake = Lake(str(tmp_path / "lake"))
    seen = [{"event": "impression", "item_id": i, "user_id": 1, "event_timestamp": MAY, "position": p} for i, p in ((1, 7), (2, None))]
    lake.append("events", pa.Table.from_pylist(seen, schema=SCHEMAS["events"]))
    lake.append("queries", SCHEMAS["queries"].empty_table())
    recipe = CtrRecipe(name="toy", extractor="din", **RECIPE, position=True)
    found = impressions_of(lake, MAY, MAY + dt.timedelta(days=1), rule=recipe)
    assert dict(zip(found["item_id"].to_pylist(), found[SHOWN_AT].to_pylist(), strict=True)) == {1: 7, 2: None}
    assert SHOWN_AT not in impressions_of(lake, MAY, MAY + dt.timedelta(days=1), rule=replace(recipe, position=False)).column_names
