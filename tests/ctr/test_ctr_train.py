"""Training click models on problems whose answer is known: ids alone, and content alone."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, load_model
from toy_clicks import DIM, ITEMS, MAY, QUERIES, impressions, unit

from moon_ops.ctr import fit as fitting
from moon_ops.ctr import metrics, train
from moon_ops.ctr.dataset import batches, encode
from moon_ops.ctr.models import IDS, ClickModel, Sizes
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.train import CtrReport
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import UNKNOWN, Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, InputError
from moon_ops.recipes.ctr import CtrRecipe

RECIPE = CtrRecipe(
    name="toy", extractor="cube", epochs=6, batch=64, learning_rate=1e-2, embedding_dim=4, hidden=(16,), behaviors=3, validation=0.0
)


@pytest.fixture(scope="module")
def tables() -> Tables:
    items = RepresentationTable(np.arange(ITEMS), unit(ITEMS, 0), "c-one")
    return Tables(items, RepresentationTable(np.arange(QUERIES), unit(QUERIES, 1), "c-one"))


@pytest.fixture(scope="module")
def by_content() -> pa.Table:
    """Every item is shown once, and clicked if it looks like the query: what ids cannot tell."""
    items, queries = np.arange(ITEMS), np.arange(ITEMS) % QUERIES
    return impressions(items, queries, (unit(ITEMS, 0)[items] * unit(QUERIES, 1)[queries]).sum(1) > 0.1)


@pytest.fixture(scope="module")
def by_id() -> pa.Table:
    """Twenty items; those with an odd id are clicked nine times of ten, the others once."""
    items = np.arange(600) % 20
    return impressions(items, items, (np.random.default_rng(0).random(600) < 0.9) == (items % 2 == 1))


Fit = Callable[..., CtrReport]
Wide = Callable[[pa.Table], Joined]


@pytest.fixture(scope="module")
def fit(tables: Tables, wide: Wide) -> Fit:
    def run(rows: pa.Table, out: Path, *, seed: int = 0, on_step: Any = None, **changed: Any) -> CtrReport:
        origin = train.Origin("ctr_v1", MAY, MAY + dt.timedelta(days=7))
        return train.train(wide(rows), tables, out, replace(RECIPE, **changed), origin=origin, seed=seed, on_step=on_step)

    return run


@pytest.fixture(scope="module")
def cube(fit: Fit, by_content: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "cube"
    fit(by_content.slice(0, 1000), out)
    return out


@pytest.fixture(scope="module")
def auc(tables: Tables, wide: Wide) -> Callable[[Path, pa.Table], float]:
    def found(model: Path, rows: pa.Table) -> float:
        scorer = Scorer(model, threads=1)
        encoded = scorer.encode(wide(rows), tables)
        return metrics.auc(encoded.labels, scorer.score(encoded))

    return found


def test_cube_learns_content_that_ids_cannot_tell(cube: Path, by_content: pa.Table, tables: Tables, wide: Wide, auc: Any) -> None:
    """On items that training did not see, of one category, brand, seller and price."""
    held_out = by_content.slice(1000)
    assert set(Scorer(cube).encode(wide(held_out), tables).coded[""].ids[:-1, 0].tolist()) == {UNKNOWN}
    assert auc(cube, held_out) > 0.9


@pytest.mark.parametrize(
    ("extractor", "least"),
    [
        ("make", 0.8),
        ("simtier+make", 0.8),
        ("din+cos", 0.9),
        ("din+cos+query", 0.9),
        ("raw+cos+query", 0.9),
        ("simtier+sata+cos+query", 0.9),
    ],
)
def test_what_reads_the_query_learns_it_too(
    fit: Fit, by_content: pa.Table, auc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: str, least: float
) -> None:
    fit(by_content.slice(0, 1000), tmp_path / "model", extractor=extractor, pretrain_epochs=12)
    assert auc(tmp_path / "model", by_content.slice(1000)) > least


@pytest.mark.parametrize("extractor", ["raw", "simscore", "simtier", "sata", "simtier+sata", "din+query"])
def test_every_extractor_is_trained_exported_and_scored(fit: Fit, by_id: pa.Table, auc: Any, tmp_path: Path, extractor: str) -> None:
    report = fit(by_id.slice(0, 400), tmp_path / "model", extractor=extractor)
    assert report.parity < train.PARITY
    assert auc(tmp_path / "model", by_id.slice(400)) > 0.8


@pytest.mark.parametrize("parts", [("items", "vectors"), ("queries", "match"), ("content", "vectors"), ("by_id", "fusion", "cosines")])
def test_cube_without_parts_is_trained_exported_and_scored(fit: Fit, by_id: pa.Table, auc: Any, tmp_path: Path, parts: Any) -> None:
    report = fit(by_id.slice(0, 400), tmp_path / "model", without=parts)
    assert report.parity < train.PARITY
    assert auc(tmp_path / "model", by_id.slice(400)) > 0.8


def test_din_learns_ids_and_reports_its_steps(fit: Fit, by_id: pa.Table, auc: Any, tmp_path: Path) -> None:
    heard: dict[int, float] = {}
    fit(by_id.slice(0, 400), tmp_path / "din", extractor="din", on_step=lambda step, found: heard.update({step: found["loss"]}))
    assert auc(tmp_path / "din", by_id.slice(400)) > 0.8
    assert list(heard) == [20, 40]
    assert heard[40] < heard[20]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the export, which takes seconds and draws nothing."""
    monkeypatch.setattr(train, "_export", lambda *_: None)
    monkeypatch.setattr(train, "_parity", lambda *_: 0.0)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("killed_at", [1, 5, 13])
@pytest.mark.parametrize("extractor", ["cube", "make"])
def test_a_killed_training_ends_as_if_nothing_had_happened(
    fit: Fit, by_content: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, extractor: str
) -> None:
    monkeypatch.setattr(fitting, "SAVED", 4)
    settings: dict[str, Any] = {"extractor": extractor, "epochs": 2, "dropout": 0.3, "validation": 0.2, "pretrain_epochs": 2}
    whole = fit(by_content.slice(0, 600), tmp_path / "whole", **settings)
    one, steps = fitting._Fit._one, iter(range(killed_at))

    def until_killed(self: Any, *arguments: Any) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        one(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Fit, "_one", until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(by_content.slice(0, 600), tmp_path / "killed", **settings)
    pretrained = Mock(side_effect=AssertionError("it goes on, it does not start over"))
    monkeypatch.setattr(fitting, "pretrain", pretrained)
    assert fit(by_content.slice(0, 600), tmp_path / "killed", **settings) == whole
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.usefixtures("bare")
def test_a_killed_training_on_other_rows_begins_anew(
    fit: Fit, by_content: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure between the two takes rows, and ids from the vocabulary: the weights would no longer fit, or mean other items."""
    before, after = by_content.slice(0, 600), by_content.slice(3, 597)
    with monkeypatch.context() as patched:
        patched.setattr(train, "_export", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(before, tmp_path / "killed", epochs=1)
    assert (tmp_path / "killed.partial" / "newest").is_file()
    assert fit(after, tmp_path / "killed", epochs=1) == fit(after, tmp_path / "whole", epochs=1)


def test_only_what_the_rows_reach_tells_them_from_others(tables: Tables, wide: Wide, by_id: pa.Table) -> None:
    """A click of somebody else, a night later, costs nobody his checkpoint."""
    one, names = by_id.slice(0, 50), by_id.column_names
    whole = wide(one)

    def digest(joined: Joined) -> int:
        return encode(joined, Vocabulary.fit(whole), tables, 3).digest()

    views = {name: pa.concat_tables([view, view.slice(0, 1)]) for name, view in whole.views.items()}
    assert digest(Joined(whole.rows, views, whole.at)) == digest(whole)
    changes: dict[str, list[Any]] = {"is_image": [False] * 50, "item_ids": [[2, 1]] * 50, "clicks": [11] * 50, "label": [0] * 50}
    changed = {name: digest(wide(one.set_column(names.index(name), name, pa.array(values)))) for name, values in changes.items()}
    assert len({digest(whole), *changed.values()}) == 1 + len(changes), changed


@pytest.mark.usefixtures("bare")
def test_nothing_is_learned_from_the_rows_that_say_when_to_stop(fit: Fit, by_id: pa.Table, tmp_path: Path) -> None:
    """Not even that their ids exist: items 20 to 39 are shown in the last fifth only."""
    items = np.array(by_id["item_id"].to_pylist())
    items[480:] += 20
    rows = by_id.set_column(by_id.column_names.index("item_id"), "item_id", pa.array(items))
    fit(rows, tmp_path / "model", extractor="din", epochs=1, validation=0.2)
    assert Vocabulary.load(tmp_path / "model").values["item"].tolist() == list(range(20))
    clicked = by_id.column_names.index("label")
    unlike = by_id.set_column(clicked, "label", pa.array([0] * 480 + [1] * 120))
    with pytest.raises(InputError, match="0 of 480 rows are clicks"):
        fit(unlike, tmp_path / "other", extractor="din", epochs=1, validation=0.2)


@pytest.mark.usefixtures("bare")
def test_training_stops_when_newer_impressions_are_no_better_understood(fit: Fit, by_id: pa.Table, tmp_path: Path) -> None:
    """The last fifth is labelled at random: what is learned from the others helps nothing there, and the best look is the one kept."""
    labels = np.array(by_id["label"].to_pylist())
    labels[480:] = np.random.default_rng(3).integers(0, 2, 120)
    rows = by_id.set_column(by_id.column_names.index("label"), "label", pa.array(labels))
    heard: list[float] = []

    def hear(step: int, found: dict[str, float]) -> None:
        heard.extend([found["validation_auc"]] if "validation_auc" in found else [])

    report = fit(rows, tmp_path / "model", extractor="din", epochs=50, validation=0.2, patience=3, on_step=hear)
    assert len(heard) < 50
    assert report.validation_auc == max(heard) == heard[-4]
    assert report.epochs == pytest.approx(0.5 * (len(heard) - 3), abs=0.01)


def test_a_step_touches_the_rows_of_its_batch_and_no_others(tables: Tables, wide: Wide, by_id: pa.Table) -> None:
    vocabulary = Vocabulary.fit(wide(by_id))
    rows = encode(wide(by_id), vocabulary, tables, 3)
    model = train.build(rows, vocabulary, replace(RECIPE, extractor="din"), seed=0)
    before = model.embedding.weight.detach().clone()
    columns, labels = next(batches(rows, model.inputs, 4, np.arange(4)))
    torch.nn.functional.binary_cross_entropy_with_logits(model(*columns), labels).backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.is_sparse
    for optimizer in fitting.optimizers(model, RECIPE):
        optimizer.step()
    changed = (model.embedding.weight != before).any(1).nonzero().flatten()
    assert 0 < len(changed) <= 4 * (len(IDS) + 6 + 2 * 3)


@pytest.mark.usefixtures("bare")
def test_the_same_seed_gives_the_same_model(fit: Fit, by_id: pa.Table, tmp_path: Path) -> None:
    reports = [fit(by_id.slice(0, 100), tmp_path / str(n), seed=seed, epochs=2, dropout=0.2) for n, seed in enumerate((3, 3, 4))]
    first, same, other = (load_file(tmp_path / str(n) / "model.safetensors") for n in range(3))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["predictor.0.weight"], other["predictor.0.weight"])
    assert reports[0] == reports[1]


def test_exported_scores_are_those_of_the_trained_model(cube: Path, by_content: pa.Table, tables: Tables, wide: Wide) -> None:
    """On more rows than one batch, and on one row alone."""
    scorer = Scorer(cube, threads=1)
    sizes = Sizes(scorer.vocabulary.sizes(), scorer.vocabulary.word_rows, RECIPE.embedding_dim, RECIPE.hidden, DIM, RECIPE.behaviors, 0.0)
    model = ClickModel(sizes, "cube").eval()
    load_model(model, str(cube / "model.safetensors"))
    rows = scorer.encode(wide(pa.concat_tables([by_content] * 3)), tables)
    columns, _ = next(batches(rows, model.inputs, len(rows), np.arange(len(rows))))
    with torch.no_grad():
        eager = torch.sigmoid(model(*columns)).numpy()
    assert len(rows) == 4500
    assert scorer.score(rows) == pytest.approx(eager, abs=1e-5)
    alone = scorer.encode(wide(by_content.slice(7, 1)), tables)
    assert scorer.score(alone) == pytest.approx(eager[7:8], abs=1e-5)


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


def test_a_loss_that_is_no_number_stops_the_training(by_content: pa.Table, tables: Tables, wide: Wide, tmp_path: Path) -> None:
    broken = Tables(RepresentationTable(np.arange(ITEMS), unit(ITEMS, 0) * np.float32("nan"), "c-one"), tables.queries)
    origin = train.Origin("ctr_v1", MAY, MAY)
    with pytest.raises(InputError, match="loss is nan at step 0 → lower learning_rate"):
        train.train(wide(by_content), broken, tmp_path / "model", RECIPE, origin=origin, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.partial"]


def test_a_failed_training_keeps_the_model_that_is_there(
    fit: Fit, by_id: pa.Table, cube: Path, tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cube, tmp_path / "model")
    monkeypatch.setattr(train, "PARITY", -1.0)
    with pytest.raises(ContractError, match="differs from the trained one by"):
        fit(by_id.slice(0, 50), tmp_path / "model", extractor="din", epochs=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.partial"]
    assert Scorer(tmp_path / "model").meta == Scorer(cube).meta


def test_a_scorer_refuses_vectors_of_another_contract(cube: Path, by_content: pa.Table, wide: Wide) -> None:
    other = Tables(*(RepresentationTable(np.arange(n), unit(n, 0), "c-two") for n in (ITEMS, QUERIES)))
    scorer = Scorer(cube)
    with pytest.raises(ContractError, match="contract c-two was about to meet contract c-one"):
        scorer.score(scorer.encode(wide(by_content), other))


def test_a_directory_that_is_no_click_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no ctr\.json"):
        Scorer(tmp_path)
