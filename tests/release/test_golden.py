"""Variants at the release: judged on what users bought before the training ended, made at export, and used when the settings say so."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from moon_ops.encoder.variants import exported_loss, make_variant
from moon_ops.errors import ContractError, StageError
from moon_ops.inputs.contract import Contract, file_sha256
from moon_ops.lake.tables import image_bytes
from moon_ops.metric_names import recall_loss
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import operation, stages
from moon_ops.release.golden import golden
from moon_ops.release.manifest import _part
from moon_ops.settings import Settings


@pytest.fixture(scope="module")
def directory(released: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(Registry(released).fetch(ENCODER, 1), tmp_path_factory.mktemp("golden") / "encoder"))


def test_a_golden_query_is_to_find_the_item_that_was_bought_after_it(released: Settings, directory: Path) -> None:
    until = encoder_version(released, 1).trained_until
    layout = Contract.load(directory).layout
    made = golden(released.lake, layout, until, queries=30, items=60)
    again = golden(released.lake, layout, until, queries=30, items=60)
    assert (len(made.queries), len(made.items), len(made.answers)) == (30, 60, 30)
    assert made.queries == again.queries, "drawn with a fixed seed"
    events = released.lake.read("events", ["query_id", "item_id", "event_timestamp", "event"]).to_pylist()
    bought = {(e["query_id"], e["item_id"]) for e in events if e["event"] != "impression" and e["event_timestamp"] < until}
    queries = {q["query_id"]: q for q in released.lake.read("queries").to_pylist()}
    items = {tuple(i["image_ids"] or ()): i["item_id"] for i in released.lake.read("items").to_pylist()}
    pairs = {((queries[q]["text"] or "", queries[q]["image_id"]), i) for q, i in bought if q is not None}
    for query, answer in zip(made.queries, made.answers, strict=True):
        asked = (query.text, query.image_ids[0] if query.image_ids else None)
        assert (asked, items[made.items[answer].image_ids]) in pairs
    wanted = {i for s in (*made.queries, *made.items) for i in s.image_ids[: layout.max_pictures]}
    assert set(made.pixels) == wanted == {name for name, _ in image_bytes(released.lake, sorted(wanted))}


def test_nothing_after_the_training_is_used(released: Settings, directory: Path) -> None:
    first = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    with pytest.raises(StageError, match="has 0 clicks, carts and purchases"):
        golden(released.lake, Contract.load(directory).layout, first)


def test_a_variant_made_at_export_is_used_when_the_settings_say_so(copied: Settings, directory: Path) -> None:
    """``MOON_VARIANT`` alone has it made: the retraining DAG exports without naming any."""
    checkpoint = Path(shutil.copytree(directory, copied.home / "again"))
    number = stages.export(copied.replace(variant="int8"), checkpoint).encoder
    plain, small = stages.runtime(copied, number), stages.runtime(copied.replace(variant="int8"), number)
    assert plain.contract_id == small.contract_id, "the variant's vectors may meet the contract's"
    hashed = _part(Registry(copied), ENCODER, number)["sha256"]
    assert {"trunk.onnx", "tower.int8.onnx", "trunk.int8.onnx", "certificate.int8.json"} <= set(hashed), "what may be served is verified"
    losses, certificate = operation.variants(Registry(copied), number), json.loads((checkpoint / "certificate.int8.json").read_text())
    assert losses == {recall_loss("fp32"): 0.0, recall_loss("int8"): max(certificate["recall_loss"], certificate["recall_loss_mixed"])}
    made = golden(copied.lake, plain.contract.layout, encoder_version(copied, 1).trained_until, queries=20, items=20)
    left, right = (opened.embed(made.items, made.pixels) for opened in (plain, small))
    cosines = (left * right).sum(1)
    assert cosines.min() > 0.9
    assert np.abs(left - right).max() > 1e-5, "they are not the same graphs"


def test_graphs_that_are_not_the_model_s_lose_what_it_finds(released: Settings, directory: Path, tmp_path: Path) -> None:
    """The graphs of a trained encoder, beside weights of which every second matrix is reversed: the model finds less than its graphs."""
    made = golden(released.lake, Contract.load(directory).layout, encoder_version(released, 1).trained_until, queries=60, items=100)
    assert exported_loss(directory, made) == 0.0
    other = Path(shutil.copytree(directory, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    turned = {name: (w.flip(0).contiguous() if w.ndim == 2 and at % 2 else w) for at, (name, w) in enumerate(sorted(weights.items()))}
    save_file(turned, other / "model.safetensors", {"format": "pt"})
    replace(Contract.load(other), weights=file_sha256(other / "model.safetensors")).save(other)
    lost = exported_loss(other, made)
    assert lost is not None
    assert lost < -0.1
    assert exported_loss(directory, replace(made, items=made.items[:10])) is None, "ten of ten items are found by anything"


def test_an_encoder_without_the_variant_is_refused(copied: Settings) -> None:
    with pytest.raises(ContractError, match="int8"):
        stages.runtime(copied.replace(variant="int8"), 1)


def test_a_variant_that_loses_recall_is_refused_before_anything_is_registered(
    copied: Settings, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moon_ops.encoder.variants.make_variant", lambda *a, **k: make_variant(*a, **{**k, "floor": -1.0}))
    checkpoint = Path(shutil.copytree(directory, copied.home / "again"))
    with pytest.raises(ContractError, match=r"loses .* of recall@10"):
        stages.export(copied, checkpoint, ["int8"])
    assert Registry(copied).client.search_model_versions(f"name = '{ENCODER}'")[0].version == 1
