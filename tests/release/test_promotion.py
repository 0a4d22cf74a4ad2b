"""Promotion moves aliases and nothing else, and only for a release that passed and whose every part is what its manifest says."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import FAILED, WISH, Make, aliases

from moon_ops import tasks as jobs
from moon_ops.embeddings import index
from moon_ops.embeddings.table import RepresentationTable
from moon_ops.errors import ContractError, GateError, StageError
from moon_ops.publication import places
from moon_ops.registry.registry import CHAMPION, CTR, ENCODER, PREVIOUS, RELEASE, Registry, manifest_of
from moon_ops.release import promotion
from moon_ops.release.manifest import FILES
from moon_ops.settings import Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evidence": [FAILED], "passed": False}, r"recall@10 = 0.3000, it must be at least the floor 0.4"),
        ({"evidence": [FAILED], "passed": True}, "did not pass its gates: image_search/recall@10"),
        ({"evidence": [{**FAILED, "value": float("nan")}], "passed": False}, "image_search/recall@10 is not a number, it must be"),
        ({"passed": False}, "did not pass its gates: passed"),
    ],
    ids=["failed", "failed but said to have passed", "not a number", "no evidence against it"],
)
def test_a_release_that_failed_is_not_promoted(
    copied: Settings, registry: Registry, make_release: Make, changed: dict[str, Any], message: str
) -> None:
    make_release(**changed)
    with pytest.raises(GateError, match=message):
        promotion.promote(copied, 2, WISH)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}


def test_a_release_that_was_compared_with_another_champion_is_not_promoted(
    copied: Settings, registry: Registry, make_release: Make
) -> None:
    """Releases 2 and 3 were both better than 1; whether 3 is better than 2 nobody has measured."""
    assert (make_release(), make_release()) == (2, 3)
    promotion.promote(copied, 2, WISH)
    with pytest.raises(GateError, match="release 3 was compared with release 1, but release 2 is champion now"):
        promotion.promote(copied, 3, WISH)
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}
    assert promotion.promote(copied, 1, WISH).before == 2, "the way back is always open"
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: 2}


def test_a_job_says_no_to_a_failed_release_and_promotes_the_other(
    copied: Settings, registry: Registry, make_release: Make, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOON_HOME", str(copied.home))
    assert (make_release(passed=False), make_release()) == (2, 3)
    with pytest.raises(GateError, match="the release did not pass its gates"):
        jobs.require_passed(2)
    assert (jobs.require_passed(3), registry.alias(CHAMPION)) == (3, 1)
    assert (jobs.promote(3, WISH.at), registry.alias(CHAMPION)) == (True, 3)
    assert (jobs.served_encoder(), jobs.other_releases()) == (1, [1]), "the one before, on the same encoder"
    assert jobs.refresh_release(1, now.isoformat()) == 1
    assert jobs.require_complete([1], now.isoformat()) == {"encoders": 1, "items": 115}


def test_an_unknown_release_is_an_error(copied: Settings, registry: Registry) -> None:
    with pytest.raises(StageError, match="moon-release has no version 9"):
        promotion.promote(copied, 9, WISH)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}


def test_a_release_without_a_manifest_is_an_error(copied: Settings, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("registered by hand")
    registry.register(RELEASE, registry.start_run("by hand", {}), tmp_path / "other", {})
    with pytest.raises(StageError, match=r"moon-release 2 has no manifest\.json"):
        promotion.promote(copied, 2, WISH)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_a_tampered_part_is_refused(copied: Settings, registry: Registry, make_release: Make, name: str, file: str) -> None:
    make_release()
    with (registry.fetch(name, 1) / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ContractError, match=f"{file} of {name} 1 has sha256 .*, the manifest says"):
        promotion.promote(copied, 2, WISH)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}


def test_a_missing_file_is_refused(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release()
    (registry.fetch(CTR, 1) / "model.onnx").unlink()
    with pytest.raises(ContractError, match=r"model\.onnx of moon-ctr 1 has sha256 nothing"):
        promotion.promote(copied, 2, WISH)


def test_rollback_refuses_a_tampered_release_too(copied: Settings, registry: Registry, make_release: Make) -> None:
    good = manifest_of(registry, 1)["encoder"]
    make_release(encoder={**good, "sha256": {**good["sha256"], "trunk.onnx": "0" * 64}})
    with pytest.raises(ContractError, match=r"trunk\.onnx of moon-encoder 1 .* the manifest says 000000000000"):
        promotion.rollback(copied, WISH, to=2)
    assert aliases(registry) == {CHAMPION: 1, PREVIOUS: None}


def test_an_index_of_another_contract_is_refused(copied: Settings, make_release: Make) -> None:
    make_release()
    index.build(places.index_place(copied, 1), np.array([1]), np.eye(1, 64, dtype=np.float32), "c-other")
    with pytest.raises(ContractError, match=r"manifest and index: contract c-[0-9a-f]+ was about to meet contract c-other"):
        promotion.promote(copied, 2, WISH)


def test_vectors_of_another_contract_are_refused(copied: Settings, make_release: Make) -> None:
    make_release()
    for kind in ("items", "queries"):
        RepresentationTable.write(places.table_place(copied, kind, 1), np.array([1]), np.eye(1, 64, dtype=np.float32), "c-other")
    with pytest.raises(ContractError, match=r"manifest and representation table: contract c-[0-9a-f]+ was about to meet contract c-other"):
        promotion.promote(copied, 2, WISH)


def test_an_encoder_of_another_contract_is_refused(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release()
    registry.tag(ENCODER, 1, {"contract_id": "c-other"})
    with pytest.raises(ContractError, match=r"manifest and encoder: contract c-[0-9a-f]+ was about to meet contract c-other"):
        promotion.promote(copied, 2, WISH)


def test_a_release_without_a_click_model_can_be_promoted(copied: Settings, registry: Registry, make_release: Make) -> None:
    make_release(ctr=None)
    (registry.fetch(CTR, 1) / "model.onnx").unlink()
    assert promotion.promote(copied, 2, WISH).before == 1


def test_a_click_model_of_another_contract_is_refused(copied: Settings, registry: Registry, make_release: Make) -> None:
    """Its files are what the manifest says, but it was trained on another encoder's vectors."""
    make_release()
    registry.tag(CTR, 1, {"contract_id": "c-other"})
    with pytest.raises(ContractError, match=r"manifest and click model: contract c-[0-9a-f]+ was about to meet contract c-other"):
        promotion.promote(copied, 2, WISH)
