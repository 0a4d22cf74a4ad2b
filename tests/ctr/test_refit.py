"""After early stopping a model may be trained anew on everything, for as many steps a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from toy_clicks import ITEMS, MAY, QUERIES, impressions, unit

from moon_ops.ctr import fit as fitting
from moon_ops.ctr import train
from moon_ops.ctr.train import CtrReport
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.recipes.ctr import CtrRecipe

SMALL: dict[str, Any] = {"embedding_dim": 4, "hidden": (16,), "behaviors": 3}
RECIPE = CtrRecipe(name="toy", extractor="din", epochs=4, batch=32, learning_rate=1e-2, validation=0.2, refit=True, **SMALL)
Fit = Callable[..., CtrReport]


@pytest.fixture
def fit(wide: Callable[[pa.Table], Joined], monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Without the export, which takes seconds and draws nothing."""
    monkeypatch.setattr(train, "_export", lambda *_: None)
    monkeypatch.setattr(train, "_parity", lambda *_: 0.0)
    tables = Tables(*(RepresentationTable(np.arange(n), unit(n, seed), "c-one") for n, seed in ((ITEMS, 0), (QUERIES, 1))))

    def run(rows: pa.Table, out: Path, on_step: Any = None, **changed: Any) -> CtrReport:
        origin = train.Origin("ctr_v1", MAY, MAY)
        return train.train(wide(rows), tables, out, replace(RECIPE, **changed), origin=origin, seed=0, on_step=on_step)

    return run


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """Twenty items, of which 20 to 24 are shown in the last fifth only; odd ones are clicked nine times of ten, the others once."""
    items = np.arange(600) % 20
    items[480:] = np.arange(120) % 25
    return impressions(items, items, (np.random.default_rng(0).random(600) < 0.9) == (items % 2 == 1))


def test_the_newest_rows_are_learned_from_and_the_steps_are_scaled_by_rows(fit: Fit, rows: pa.Table, tmp_path: Path) -> None:
    plain = fit(rows, tmp_path / "plain", refit=False)
    report = fit(rows, tmp_path / "refit")
    assert Vocabulary.load(tmp_path / "plain").values["item"].tolist() == list(range(20))
    assert Vocabulary.load(tmp_path / "refit").values["item"].tolist() == list(range(25))
    assert plain.refit_steps == 0
    assert report.refit_steps == round(plain.epochs * 15 * 600 / 480)  # 15 steps an epoch over 480 rows
    assert (report.epochs, report.validation_auc) == (plain.epochs, plain.validation_auc)


def test_a_refit_is_a_training_on_all_rows_of_so_many_steps(
    fit: Fit, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the best look was after whole epochs, it is the training without validation of as many."""
    monkeypatch.setattr(fitting, "LOOKS", 1)
    heard: list[int] = []
    report = fit(rows, tmp_path / "refit", batch=40, on_step=lambda step, _: heard.append(step))
    assert heard == sorted(heard)
    assert report.refit_steps == 15 * report.epochs
    fit(rows, tmp_path / "whole", batch=40, validation=0.0, refit=False, epochs=report.refit_steps // 15)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("refit", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("killed_at", [7, 61, 75])
def test_a_killed_refit_goes_on(fit: Fit, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    """Killed in the first training, at the refit's first step, and in the middle of it; no finished step of the first is made again."""
    monkeypatch.setattr(fitting, "SAVED", 4)
    settings: dict[str, Any] = {"patience": 99, "dropout": 0.3}
    whole = fit(rows, tmp_path / "whole", **settings)
    assert whole.refit_steps > 20
    one, made = fitting._Fit._one, list[int]()

    def until_killed(self: Any, *arguments: Any) -> None:
        if len(made) == killed_at:
            raise KeyboardInterrupt
        made.append(self.step)
        one(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Fit, "_one", until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(rows, tmp_path / "killed", **settings)
        made.clear()
        patched.setattr(fitting._Fit, "_one", lambda self, *a: (made.append(self.step), one(self, *a)))
        assert fit(rows, tmp_path / "killed", **settings) == whole
    assert made[0] == {7: 4, 61: 0, 75: 12}[killed_at]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_refit_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="refit = True must be false where validation = 0"):
        replace(RECIPE, validation=0.0)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_training_whose_best_weights_are_damaged_begins_anew(
    fit: Fit, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """They are read after the last step: it would fail there, at each try."""
    monkeypatch.setattr(fitting, "SAVED", 4)
    whole, one, left = fit(rows, tmp_path / "whole", refit=False), fitting._Fit._one, iter(range(25))

    def until_killed(self: Any, *given: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        one(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Fit, "_one", until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit(rows, tmp_path / "killed", refit=False)
    (best,) = (tmp_path / "killed.partial").rglob("best-*.safetensors")
    if damage == "cut":
        best.write_bytes(best.read_bytes()[:100])
    else:
        best.unlink()
    assert fit(rows, tmp_path / "killed", refit=False) == whole
