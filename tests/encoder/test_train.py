"""Training: it learns, it repeats, it leaves nothing half done, and what is exported computes the same."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moon_ops.encoder import export as export_module
from moon_ops.encoder import train as train_module
from moon_ops.encoder.export import check_graphs, export
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.train import train
from moon_ops.errors import ContractError, InputError, StageError
from moon_ops.recipes import EncoderRecipe, recipe
from moon_ops.settings import ROOT

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)


def nano(**training: Any) -> EncoderRecipe:
    return recipe(EncoderRecipe, "moon-nano", ROOT / "models", training=training)


@pytest.fixture(scope="module")
def trained(lake: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[tuple[int, dict[str, float]]]]:
    out, heard = tmp_path_factory.mktemp("encoder") / "e", []
    report = train(
        lake, out, nano(steps=40, batch=16), trained_until=UNTIL, seed=0, on_step=lambda step, found: heard.append((step, found))
    )
    return out, report, heard


def test_loss_falls_and_is_reported_while_it_runs(trained: Any) -> None:
    out, report, heard = trained
    assert report.last_loss < 0.8 * report.first_loss
    assert [step for step, _ in heard] == [0, 10, 20, 30, 39]
    assert set(heard[0][1]) == {"loss", "temperature", "learning_rate", "gradient_norm"}
    stored = json.loads((out / "training.json").read_text())
    assert stored["trained_until"] == UNTIL.isoformat()
    assert stored["pairs"] == report.pairs > 20


def test_the_same_seed_gives_the_same_encoder(lake: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(lake, tmp_path / name, nano(steps=3, batch=8), trained_until=UNTIL, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_a_run_that_dies_leaves_nothing_where_the_encoder_belongs(lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_save", die)
    with pytest.raises(KeyboardInterrupt):
        train(lake, tmp_path / "e", nano(steps=1, batch=8), trained_until=UNTIL, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_with_the_items(lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "info_nce", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(InputError, match=r"the loss is nan at step 0, in a batch with items \[\d+"):
        train(lake, tmp_path / "e", nano(steps=2, batch=8), trained_until=UNTIL, seed=0)


def test_without_purchases_there_is_nothing_to_train_on(lake: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="0 purchases"):
        train(lake, tmp_path / "e", nano(steps=1), trained_until=dt.datetime(2025, 1, 1, tzinfo=dt.UTC), seed=0)


def test_exported_graphs_compute_what_the_encoder_computes(trained: Any) -> None:
    out, _, _ = trained
    certificate = export(out)
    check_graphs(out)
    assert certificate.samples == export_module.GOLDEN
    assert certificate.max_difference < 1e-5
    assert certificate.min_cosine > 0.99999
    assert certificate.rank_flips == 0
    assert json.loads((out / "contract.json").read_text())["contract_id"] == certificate.contract_id


def test_graphs_that_differ_get_no_contract(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = trained
    Encoder.load(out).save(tmp_path)
    monkeypatch.setattr(export_module, "_write_graphs", lambda _, directory: _other_graphs(out, directory))
    with pytest.raises(ContractError, match=r"least cosine .* is below 0.999"):
        export(tmp_path)
    assert not (tmp_path / "contract.json").exists()
    assert (tmp_path / "certificate.json").exists()


def _other_graphs(source: Path, directory: Path) -> None:
    """The graphs of another encoder: the same shape, other weights."""
    encoder = Encoder.load(source)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    real_write_graphs(encoder.eval(), directory)


real_write_graphs = export_module._write_graphs
