"""Training click models on problems whose answer is known: ids alone, and content alone."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, load_model

from moon_ops.ctr import metrics, train
from moon_ops.ctr.dataset import Tables, batches
from moon_ops.ctr.models import ClickModel, Sizes
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.train import CtrReport
from moon_ops.ctr.vocabulary import UNKNOWN, WORD_ROWS
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, InputError
from moon_ops.recipes import CtrRecipe

MAY = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
DIM, ITEMS, QUERIES = 8, 1500, 40
RECIPE = CtrRecipe(name="toy", extractor="cube", epochs=6, batch=64, learning_rate=1e-2, embedding_dim=4, hidden=(16,), behaviors=3)


def impressions(item_ids: NDArray[np.int64], query_ids: NDArray[np.int64], labels: NDArray[np.bool_]) -> pa.Table:
    """Impressions that differ in nothing but the item, the query and the click."""
    rows = len(labels)
    same = {
        "spu_id": 1,
        "category": "mugs",
        "brand": "Acme",
        "seller_id": 7,
        "price": 5.0,
        "impressions": 100,
        "clicks": 10,
        "purchases": 1,
    }
    columns = {name: [value] * rows for name, value in same.items()}
    columns |= {"item_id": item_ids, "user_id": np.arange(rows) % 10, "query_id": query_ids, "session_id": np.arange(rows)}
    columns |= {"label": labels.astype(np.int64), "text": [None] * rows, "is_image": [True] * rows}
    history = pa.array([[1, 2]] * rows, pa.list_(pa.int64()))
    return pa.table(columns | {"item_ids": history, "query_ids": history})


def unit(rows: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tables() -> Tables:
    items = RepresentationTable(np.arange(ITEMS), unit(ITEMS, 0), "c-one")
    return Tables(items, RepresentationTable(np.arange(QUERIES), unit(QUERIES, 1), "c-one"))


@pytest.fixture(scope="module")
def by_content(tables: Tables) -> pa.Table:
    """Every item is shown once, and clicked if it looks like the query: what ids cannot tell."""
    items, queries = np.arange(ITEMS), np.arange(ITEMS) % QUERIES
    return impressions(items, queries, (tables.items.vectors[items] * tables.queries.vectors[queries]).sum(1) > 0.1)


@pytest.fixture(scope="module")
def by_id() -> pa.Table:
    """Twenty items; those with an odd id are clicked nine times of ten, the others once."""
    items = np.arange(600) % 20
    return impressions(items, items, (np.random.default_rng(0).random(600) < 0.9) == (items % 2 == 1))


Fit = Callable[..., CtrReport]


@pytest.fixture(scope="module")
def fit(tables: Tables) -> Fit:
    def run(rows: pa.Table, out: Path, *, seed: int = 0, on_step: Any = None, **changed: Any) -> CtrReport:
        times = {"trained_from": MAY, "trained_until": MAY + dt.timedelta(days=7)}
        return train.train(rows, tables, out, replace(RECIPE, **changed), feature_service="ctr_v1", seed=seed, on_step=on_step, **times)

    return run


@pytest.fixture(scope="module")
def cube(fit: Fit, by_content: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "cube"
    fit(by_content.slice(0, 1000), out)
    return out


def auc(model: Path, rows: pa.Table, tables: Tables) -> float:
    scorer = Scorer(model, threads=1)
    encoded = scorer.encode(rows, tables)
    return metrics.auc(encoded.labels, scorer.score(encoded, tables))


def test_cube_learns_content_that_ids_cannot_tell(cube: Path, by_content: pa.Table, tables: Tables) -> None:
    """On items that training did not see, of one category, brand, seller and price."""
    held_out = by_content.slice(1000)
    assert set(Scorer(cube).encode(held_out, tables).arrays["item"].tolist()) == {UNKNOWN}
    assert auc(cube, held_out, tables) > 0.9


def test_din_learns_ids_and_reports_its_steps(fit: Fit, by_id: pa.Table, tables: Tables, tmp_path: Path) -> None:
    heard: dict[int, float] = {}
    fit(by_id.slice(0, 400), tmp_path / "din", extractor="din", on_step=lambda step, found: heard.update({step: found["loss"]}))
    assert auc(tmp_path / "din", by_id.slice(400), tables) > 0.8
    assert list(heard) == [20, 40]
    assert heard[40] < heard[20]


def test_the_same_seed_gives_the_same_model(fit: Fit, by_id: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_export", lambda *_: None)  # takes seconds, and draws nothing
    monkeypatch.setattr(train, "_parity", lambda *_: 0.0)
    reports = [fit(by_id.slice(0, 100), tmp_path / str(n), seed=seed, epochs=2, dropout=0.2) for n, seed in enumerate((3, 3, 4))]
    first, same, other = (load_file(tmp_path / str(n) / "model.safetensors") for n in range(3))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["predictor.0.weight"], other["predictor.0.weight"])
    assert reports[0] == reports[1]


def test_exported_scores_are_those_of_the_trained_model(cube: Path, by_content: pa.Table, tables: Tables) -> None:
    """On more rows than one batch, and on one row alone."""
    scorer = Scorer(cube, threads=1)
    sizes = Sizes(scorer.vocabulary.sizes(), WORD_ROWS, RECIPE.embedding_dim, RECIPE.hidden, DIM, RECIPE.behaviors, 0.0)
    model = ClickModel(sizes, "cube").eval()
    load_model(model, str(cube / "model.safetensors"))
    rows = scorer.encode(pa.concat_tables([by_content] * 3), tables)
    columns, _ = next(batches(rows, tables, len(rows), np.arange(len(rows))))
    with torch.no_grad():
        eager = torch.sigmoid(model(*columns)).numpy()
    assert len(rows) == 4500
    assert scorer.score(rows, tables) == pytest.approx(eager, abs=1e-5)
    alone = scorer.encode(by_content.slice(7, 1), tables)
    assert scorer.score(alone, tables) == pytest.approx(eager[7:8], abs=1e-5)


def test_the_report_stands_beside_the_model(cube: Path, by_content: pa.Table) -> None:
    report = CtrReport(**json.loads((cube / "ctr.json").read_text()))
    clicks = sum(by_content.slice(0, 1000)["label"].to_pylist())
    assert (report.recipe, report.extractor, report.contract_id, report.feature_service) == ("toy", "cube", "c-one", "ctr_v1")
    assert (report.rows, report.clicks, report.behaviors, report.seed) == (1000, clicks, 3, 0)
    assert (report.trained_from, report.trained_until) == ("2026-05-01T00:00:00+00:00", "2026-05-08T00:00:00+00:00")
    assert report.parameters == sum(tensor.numel() for tensor in load_file(cube / "model.safetensors").values())
    assert 0 <= report.parity < train.PARITY
    assert 0 < report.last_loss < 0.6


@pytest.mark.parametrize("clicked", [0, 1])
def test_one_class_is_nothing_to_learn_from(fit: Fit, by_id: pa.Table, tmp_path: Path, clicked: int) -> None:
    at = by_id.column_names.index("label")
    rows = by_id.set_column(at, "label", pa.array([clicked] * 600))
    with pytest.raises(InputError, match=f"{600 * clicked} of 600 rows are clicks"):
        fit(rows, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_stops_the_training(by_content: pa.Table, tables: Tables, tmp_path: Path) -> None:
    broken = Tables(RepresentationTable(tables.items.ids, tables.items.vectors * np.float32("nan"), "c-one"), tables.queries)
    times = {"trained_from": MAY, "trained_until": MAY}
    with pytest.raises(InputError, match="loss is nan at step 0 → lower learning_rate"):
        train.train(by_content, broken, tmp_path / "model", RECIPE, feature_service="ctr_v1", seed=0, **times)
    assert not list(tmp_path.iterdir())


def test_a_failed_training_keeps_the_model_that_is_there(
    fit: Fit, by_id: pa.Table, cube: Path, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cube, tmp_path / "model")
    monkeypatch.setattr(train, "PARITY", -1.0)
    with pytest.raises(ContractError, match="differs from the trained one by"):
        fit(by_id.slice(0, 50), tmp_path / "model", extractor="din", epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert Scorer(tmp_path / "model").meta == Scorer(cube).meta


def test_a_scorer_refuses_vectors_of_another_contract(cube: Path, by_content: pa.Table, tables: Tables) -> None:
    other = Tables(*(RepresentationTable(t.ids, t.vectors, "c-two") for t in (tables.items, tables.queries)))
    scorer = Scorer(cube)
    with pytest.raises(ContractError, match="contract c-two was about to meet contract c-one"):
        scorer.score(scorer.encode(by_content, other), other)


def test_a_directory_that_is_no_click_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no ctr\.json"):
        Scorer(tmp_path)
