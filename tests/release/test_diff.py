"""Two releases side by side, from their manifests alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moon_ops.release.diff import diff, lines

RECALL = "image_search/recall@10"


def manifest(encoder: int, recall: float, against: dict[str, Any], **metrics: float) -> dict[str, Any]:
    stamp = "2026-05-01T02:00:00+02:00"
    passed = recall >= 0.5
    gate = {"gate": RECALL, "value": recall, "champion": None, "rule": "at least the floor 0.5", "passed": passed}
    return {
        "passed": passed,
        "evidence": [gate],
        "metrics": {RECALL: recall, "image_search/queries": 40.0, "ctr/auc_id_only": 0.5, f"{RECALL}:new_items": 0.1, **metrics},
        "compared_with": against,
        "created": stamp,
        "windows": dict.fromkeys(("start", "trained_until", "ctr_until", "end"), stamp),
        "contract_id": f"c-{encoder}",
        "trained_until": stamp,
        "encoder": {"version": encoder, "sha256": {"model.safetensors": f"{encoder:064x}"}},
        "ctr": None,
        "embeddings": {"table": "embeddings/v2", "version": 1, "rows": 40},
        "index": {"place": "index/v2", "sha256": f"{encoder:064d}", "kind": "flat", "items": 40},
        "diff": {"figures": {"answers/overlap@10": 0.25}},
    }


FIRST = manifest(1, 0.6, {"release": None, "metrics": None})
SECOND = manifest(
    2,
    0.4,
    {"release": 1, "metrics": {RECALL: 0.65, "image_search/queries": 40.0}},
    **{f"{RECALL}_against_champion_low": -0.3, f"{RECALL}_against_champion_high": -0.1},
)


def test_figures_on_the_same_data_with_their_interval() -> None:
    """Of the champion those that were measured beside the candidate, not those it was released with."""
    found = diff(1, FIRST, 2, SECOND)
    assert found["figures"][RECALL] == pytest.approx([0.65, 0.4, -0.25, -0.3, -0.1])
    assert found["figures"]["image_search/queries"] == [40.0, 40.0, 0.0, None, None]
    assert found["same_data"] is True
    assert found["changes"] == {"answers/overlap@10": 0.25}
    assert found["parts"]["encoder"] == ["moon-encoder 1", "moon-encoder 2"]
    assert found["parts"]["made"] == ["2026-05-01 00:00 UTC"] * 2
    assert [v["outcome"] for v in found["verdicts"]] == ["passed", "failed"]
    assert json.loads(json.dumps(found)) == found


def test_what_was_not_measured_again_beside_the_other_is_of_its_own_release() -> None:
    """E.g. how many items there were, or what the gates of its vectors said."""
    first = {**FIRST, "metrics": {**FIRST["metrics"], "catalogue/items": 30.0}}
    second = {**SECOND, "metrics": {**SECOND["metrics"], "catalogue/items": 40.0}}
    assert diff(1, first, 2, second)["figures"]["catalogue/items"] == [30.0, 40.0, 10.0, None, None]
    assert diff(2, second, 1, first)["figures"]["catalogue/items"] == [40.0, 30.0, -10.0, None, None]


def test_the_other_way_round_everything_is_turned() -> None:
    found = diff(2, SECOND, 1, FIRST)
    assert found["figures"][RECALL] == pytest.approx([0.4, 0.65, 0.25, 0.1, 0.3])
    assert found["same_data"] is True
    assert found["changes"] == {}


def test_releases_that_were_not_compared_with_each_other() -> None:
    third = manifest(3, 0.7, {"release": 1, "metrics": {RECALL: 0.55}}, **{f"{RECALL}_against_champion_low": 0.1})
    found = diff(2, SECOND, 3, third)
    assert found["figures"][RECALL] == [0.4, 0.7, pytest.approx(0.3), None, None]
    assert found["same_data"] is False
    assert "The figures were counted when each was made, not on the same queries and impressions." in list(lines(found))


def test_a_champion_that_knew_the_window_was_not_measured_on_it() -> None:
    recorded = manifest(2, 0.7, {"release": 1, "metrics": {RECALL: 0.6, "recorded": 1.0}})
    assert diff(1, FIRST, 2, recorded)["same_data"] is False


def test_lines_for_people() -> None:
    told = list(lines(diff(1, FIRST, 2, SECOND)))
    assert told[:2] == ["release 1    passed, compared with the floors", f"release 2    failed, compared with release 1: {RECALL} failed"]
    text = "\n".join(told)
    assert "encoder                  moon-encoder 1             moon-encoder 2" in text
    assert "trained until" not in text, "it does not differ"
    assert f"{RECALL:<32}       0.6500       0.4000      -0.2500   [-0.3000, -0.1000]" in text
    assert ":new_items" not in text
    assert "id_only" not in text
    assert told[-1] == "in common: 25 % of the first 10 answers"
    assert not [line for line in told if len(line) > 110]
    assert "no part differs" in list(lines(diff(1, FIRST, 1, FIRST)))
