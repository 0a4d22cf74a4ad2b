"""The map to the champion's encoder: it ships with a release, and the old click model goes on through it, offline and served alike."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from moon_ops.ctr.alignment import FILE, Alignment
from moon_ops.errors import ContractError
from moon_ops.metric_names import alignment
from moon_ops.publication import publication
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ALIGNMENT, Registry, manifest_of
from moon_ops.release import clicks, served, stages
from moon_ops.release.gates import AUC
from moon_ops.release.manifest import release
from moon_ops.release.windows import Windows, windows
from moon_ops.serving.champion import Champion
from moon_ops.serving.request import Asked
from moon_ops.settings import Settings


@pytest.fixture
def times(copied: Settings) -> Windows:
    return windows(copied.lake, trained_until=encoder_version(copied, 1).trained_until)


@pytest.fixture
def two_encoders(copied: Settings, times: Windows, now: dt.datetime) -> Settings:
    """A second encoder, trained for a moment."""
    checkpoint = stages.train(copied, "moon-nano", trained_until=times.trained_until, seed=1, steps=12).checkpoint
    assert stages.export(copied, Path(checkpoint)).encoder == 2
    stages.embed(copied, 2, now=now)
    publication.publish(copied, 2, now=now)
    return copied


def test_the_old_click_model_goes_on_through_the_map(two_encoders: Settings, times: Windows, now: dt.datetime) -> None:
    registry = Registry(two_encoders)
    with pytest.raises(ContractError, match="click model and vectors: contract c-"):
        release(two_encoders, 2, 1, times, now=now)

    without = release(two_encoders, 2, None, times, now=now)
    manifest = manifest_of(registry, without.version)
    assert (manifest["alignment"]["used"], manifest["alignment"]["old_encoder"]) == (False, 1), "it ships, and nothing reads through it"
    shown = {name: without.metrics[alignment(name)] for name in ("cosine", "recall@10", "auc")}
    assert 0 < shown["cosine"] < 1
    assert 0 <= shown["recall@10"] <= 1

    made = release(two_encoders, 2, 1, times, now=now, aligned=True)
    manifest = manifest_of(registry, made.version)
    assert manifest["alignment"]["used"] is True
    assert made.metrics[AUC] == pytest.approx(shown["auc"], abs=1e-9), "what was foretold"
    read = Alignment.load(registry.fetch(ALIGNMENT, manifest["alignment"]["version"]) / FILE)

    parts = served.parts_of(two_encoders, registry, made.version) if made.passed else _forced(two_encoders, registry, made.version)
    champion = Champion(two_encoders, parts)
    vector = champion.embed("a red sofa", None)
    asked = Asked(None, "a red sofa", is_image=False, vector=vector, contexts={})
    items = [hit.item_id for hit in champion.search(vector, 5)]
    scores = champion.score(1, items, asked)
    assert np.isfinite(scores).all()
    champion.alignment = Alignment(-read.matrix, read.new, read.old, read.cosine)
    champion.tables = champion._tables()
    assert not np.allclose(champion.score(1, items, asked), scores), "the map is really read through"

    (parts.alignment / FILE).write_bytes(b"changed")
    with pytest.raises(ContractError, match=f"{FILE} of moon-alignment 2 has sha256"):
        _forced(two_encoders, registry, made.version)


def test_one_encoder_needs_no_map(copied: Settings, times: Windows, now: dt.datetime) -> None:
    made = release(copied, 1, 1, times, now=now, aligned=True)
    assert manifest_of(Registry(copied), made.version)["alignment"] is None
    assert clicks.vectors_known(copied, 1).items.contract_id == manifest_of(Registry(copied), made.version)["contract_id"]


def _forced(settings: Settings, registry: Registry, version: int) -> served.Parts:
    from moon_ops.release.verification import fetched, verify

    verify(settings, registry, manifest_of(registry, version), forced=True)
    return fetched(registry, version, manifest_of(registry, version))
