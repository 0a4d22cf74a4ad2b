"""Training: it learns, it repeats, a killed run goes on as if nothing had happened, and what is exported computes the same."""

from __future__ import annotations

import datetime as dt
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from moon_ops.encoder import export as export_module
from moon_ops.encoder import fit, stage2
from moon_ops.encoder import train as train_module
from moon_ops.encoder.budget import Means
from moon_ops.encoder.export import check_graphs, export
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.objectives import Found
from moon_ops.encoder.train import TrainReport, train
from moon_ops.errors import ContractError, InputError, StageError
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.settings import ROOT

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
Heard = list[tuple[int, dict[str, float]]]


def run(lake: Any, out: Path, recipe: EncoderRecipe, seed: int = 0, die_at: int = -1, **more: Any) -> tuple[TrainReport, Heard]:
    heard: Heard = []

    def listen(step: int, found: dict[str, float]) -> None:
        heard.append((step, found))
        if step == die_at:
            raise KeyboardInterrupt

    report = train(lake, out, recipe, trained_until=UNTIL, seed=seed, on_step=listen, **more)
    return report, heard


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(lake: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Heard]:
    out = tmp_path_factory.mktemp("encoder") / "e"
    nano = recipe(EncoderRecipe, "moon-nano", ROOT / "models", training={"batch": 16}, stage2a={"steps": 40})
    report, heard = run(lake, out, nano)
    return out, report, heard


def test_loss_falls_and_is_reported_while_it_runs(trained: Any) -> None:
    out, report, heard = trained
    assert report.last_loss < 0.8 * report.first_loss
    assert [step for step, _ in heard] == [0, 10, 20, 30, 39]
    assert heard[0][1]["loss"] == report.first_loss
    assert {"stage2a/temperature", "stage2a/learning_rate", "stage2a/gradient_norm", "stage2a/false_negatives"} <= set(heard[0][1])
    stored = json.loads((out / "training.json").read_text())
    assert stored == asdict(report)
    assert (stored["trained_until"], stored["seed"], stored["steps"], stored["resumed_at"]) == (UNTIL.isoformat(), 0, 40, 0)
    assert (stored["pairs"], stored["twins"], stored["refined_pairs"]) == (203, 0, 0)
    assert stored["parameters"] == Encoder.load(out).parameter_count()


def test_a_finished_run_leaves_the_encoder_and_nothing_else(trained: Any) -> None:
    out, _, _ = trained
    assert [p.name for p in out.parent.iterdir()] == ["e"]
    assert not {p.suffix for p in out.rglob("*") if p.is_file()} & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


STAGES = {
    "training": {"checkpoint_steps": 2, "augment": True, "text_dropout": 0.3, "synthetic": 0.25, "matrix_learning_rate": 0.02, "chunk": 5},
    "stage1": {"steps": 4},
    "stage2a": {"steps": 4, "pairs": {"text:rich": 1.0, "image:image": 2.0}},
    "stage2b": {"steps": 4, "queue": 12, "hard_negatives": 2, "least_entities": 0},
}


@pytest.fixture(scope="module")
def every_step() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "LOG_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def undisturbed(lake: Any, least: Any, every_step: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport, Heard]:
    out = tmp_path_factory.mktemp("undisturbed") / "e"
    return out, *run(lake, out, least(**STAGES), keep_stages=True)


def only_tensors_and_json(place: Path) -> bool:
    return {p.suffix for d in place.glob("stage*") for p in d.iterdir()} <= {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("die_at", "resumed_at"),
    [(0, 0), (2, 2), (5, 4), (7, 6), (8, 8), (11, 10)],
    ids=["before any checkpoint", "stage 1", "stage 2a", "stage 2a's last", "stage 2b's first", "stage 2b"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(
    lake: Any, least: Any, undisturbed: Any, tmp_path: Path, die_at: int, resumed_at: int
) -> None:
    whole, report, heard = undisturbed
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        run(lake, out, least(**STAGES), die_at=die_at)
    assert not out.exists()
    assert only_tensors_and_json(tmp_path / "e.partial")
    again, then = run(lake, out, least(**STAGES))
    assert [step for step, _ in then] == list(range(resumed_at, 12))
    for (_, expected), (_, found) in zip(heard[resumed_at:], then, strict=True):
        for name in expected.keys() - {n for n in expected if n.endswith("samples_per_second")}:
            assert found[name] == expected[name], name
    assert equal(out, whole)
    assert again.resumed_at == resumed_at
    same = ("pairs", "refined_pairs", "steps", "first_loss", "last_loss", "parameters")
    assert {name: getattr(again, name) for name in same} == {name: getattr(report, name) for name in same}
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("means", [Means(workers=2, picture_bytes=3000), Means(workers=0, picture_bytes=0)], ids=["a little", "none"])
def test_who_makes_batches_and_which_pictures_are_kept_change_no_number(
    lake: Any, least: Any, undisturbed: Any, tmp_path: Path, means: Means
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(lake, tmp_path / "e", least(**STAGES), die_at=5, means=means)
    assert (tmp_path / "e.partial" / "pixels-0.u8").stat().st_size == means.picture_bytes // 768 * 768
    run(lake, tmp_path / "e", least(**STAGES), means=means)
    assert equal(tmp_path / "e", undisturbed[0])
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_a_run_killed_twice_still_ends_where_an_undisturbed_one_does(lake: Any, least: Any, undisturbed: Any, tmp_path: Path) -> None:
    for die_at in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            run(lake, tmp_path / "e", least(**STAGES), die_at=die_at)
    run(lake, tmp_path / "e", least(**STAGES))
    assert equal(tmp_path / "e", undisturbed[0])


def test_a_run_killed_while_it_saves_the_encoder_is_finished_by_the_next(
    lake: Any, least: Any, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "_save", die)
        with pytest.raises(KeyboardInterrupt):
            run(lake, tmp_path / "e", least(**STAGES))
    assert not (tmp_path / "e").exists()
    report, heard = run(lake, tmp_path / "e", least(**STAGES))
    assert (report.resumed_at, heard) == (12, [])
    assert report.last_loss == undisturbed[1].last_loss
    assert equal(tmp_path / "e", undisturbed[0])


@pytest.mark.parametrize("other", ["seed", "recipe"])
def test_another_run_does_not_go_on_from_a_killed_one(lake: Any, least: Any, tmp_path: Path, other: str) -> None:
    killed = least(training={"checkpoint_steps": 1}, stage2a={"steps": 3})
    recipe, seed = (killed, 1) if other == "seed" else (least(training={"checkpoint_steps": 1}, stage2a={"steps": 3, "loss": "mim"}), 0)
    with pytest.raises(KeyboardInterrupt):
        run(lake, tmp_path / "e", killed, die_at=2)
    report, _ = run(lake, tmp_path / "e", recipe, seed)
    assert report.resumed_at == 0
    run(lake, tmp_path / "fresh", recipe, seed)
    assert equal(tmp_path / "e", tmp_path / "fresh")
    run(lake, tmp_path / "killed", killed)
    assert not equal(tmp_path / "e", tmp_path / "killed")


@pytest.mark.parametrize("column", ["event", "spu_ids", "categories", "item_ids"])
def test_what_a_lake_says_otherwise_of_the_same_pairs_begins_the_run_anew(
    lake: Any, least: Any, every_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """A purchase that is no more, an item of another product: what stage 2b had chosen is of other rows."""
    recipe = least(training={"checkpoint_steps": 1, "augment": False}, stage2a={"steps": 1}, stage2b={"steps": 3, "least_entities": 0})
    with pytest.raises(KeyboardInterrupt):
        run(lake, tmp_path / "e", recipe, die_at=2)
    whole = train_module._pairs

    def other(*given: Any) -> Any:
        pairs, twins = whole(*given)
        changed = getattr(pairs, column).copy()
        changed[: len(changed) // 2] = changed[0]
        return replace(pairs, **{column: changed}), twins

    monkeypatch.setattr(train_module, "_pairs", other)
    assert run(lake, tmp_path / "e", recipe)[0].resumed_at == 0


def test_the_encoder_after_each_stage_is_kept_if_it_is_asked_for(undisturbed: Any) -> None:
    out, _, _ = undisturbed
    assert sorted(p.name for p in out.parent.iterdir()) == ["e", "e-stage1", "e-stage2a", "e-stage2b"]
    assert equal(out, out.with_name("e-stage2b"))
    assert not equal(out.with_name("e-stage1"), out.with_name("e-stage2a"))
    assert not equal(out.with_name("e-stage2a"), out)
    assert json.loads((out.with_name("e-stage1") / "training.json").read_text())["steps"] == 4
    assert Encoder.load(out.with_name("e-stage1")).dim == 32


def test_losses_are_reported_under_their_stage(undisturbed: Any) -> None:
    _, report, heard = undisturbed
    assert [next(name.partition("/")[0] for name in found if "/" in name) for _, found in heard] == ["stage1"] * 4 + ["stage2a"] * 4 + [
        "stage2b"
    ] * 4
    assert report.first_loss == heard[0][1]["loss"]
    assert report.last_loss == heard[-1][1]["loss"]  # a tenth of twelve is one
    assert 2 <= report.refined_pairs < report.pairs


def noise(seed: int, brighter: int = 0) -> bytes:
    """A picture with structure: 8 × 8 random squares."""
    squares = np.random.default_rng(seed).integers(0, 200, (8, 8, 3)).astype(np.uint8) + np.uint8(brighter)
    file = io.BytesIO()
    Image.fromarray(squares).resize((64, 64), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def test_near_identical_photographs_of_one_product_count_once(make_shop: Any, least: Any, now: dt.datetime, tmp_path: Path) -> None:
    items = [{"item_id": i, "title": f"thing {i}", "available_from": "2026-01-01T00:00:00Z"} for i in (1, 2)]
    pictures = {"a.png": noise(1), "a2.png": noise(1, brighter=9), "a3.png": noise(1, brighter=20), "b.png": noise(2)}
    asked = {1: ("a.png", 1), 2: ("a2.png", 1), 3: ("a3.png", 2), 4: ("b.png", 1)}  # the second is the first one's twin
    queries = [{"query_id": q, "timestamp": "2026-01-02T00:00:00Z", "image": picture} for q, (picture, _) in asked.items()]
    events = [{"timestamp": "2026-01-03T00:00:00Z", "item_id": item, "query_id": q, "event": "purchase"} for q, (_, item) in asked.items()]
    lake = Lake(str(tmp_path / "lake"))
    ingest(make_shop(pictures=pictures, items=items, queries=queries, events=events), lake, now=now)
    found = [run(lake, tmp_path / str(bits), least(deduplicate=bits, stage2a={"steps": 1}))[0] for bits in (-1, 4)]
    assert [(report.pairs, report.twins) for report in found] == [(4, 0), (3, 1)]


def test_bfloat16_trains_nearly_the_same_on_a_processor(lake: Any, least: Any, tmp_path: Path) -> None:
    plain, half = (
        run(lake, tmp_path / precision, least(training={"precision": precision}, stage2a={"steps": 4}))[0] for precision in ("no", "bf16")
    )
    assert half.first_loss == pytest.approx(plain.first_loss, rel=0.02)
    assert half.first_loss != plain.first_loss
    assert half.last_loss == pytest.approx(plain.last_loss, rel=0.1)
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.float32}


def test_the_same_seed_gives_the_same_encoder_and_another_does_not(lake: Any, least: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(lake, tmp_path / name, least(stage2a={"steps": 2}), seed)
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_a_loss_that_is_no_number_stops_with_the_items(lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "behaviour_loss", lambda *_: Found(torch.tensor(float("nan"), requires_grad=True), {}))
    with pytest.raises(InputError, match=r"the loss is nan at step 0 of stage2a, in a batch with items \d+, \d+"):
        run(lake, tmp_path / "e", least(stage2a={"steps": 2}))
    assert not (tmp_path / "e").exists()


def test_without_behaviour_there_is_nothing_to_train_on(lake: Any, least: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="0 clicks, carts and purchases"):
        train(lake, tmp_path / "e", least(stage2a={"steps": 1}), trained_until=dt.datetime(2025, 1, 1, tzinfo=dt.UTC), seed=0)


def test_an_encoder_that_is_there_is_replaced(lake: Any, least: Any, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "old").write_text("")
    run(lake, tmp_path / "e", least(stage2a={"steps": 1}))
    assert not (tmp_path / "e" / "old").exists()
    assert Encoder.load(tmp_path / "e").dim == 32


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
