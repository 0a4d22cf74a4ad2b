"""What a person reads of a release: short where all is well, and what failed or cannot be told beside it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from moon_ops.ctr.metrics import Difference
from moon_ops.errors import GateError
from moon_ops.metric_names import IMAGE_SEARCH, catalogue, drift, recall, recall_loss, serving, space
from moon_ops.recipes.gates import Gates
from moon_ops.release import evidence
from moon_ops.release.gates import AUC, PARITY, RECALL, judge
from moon_ops.release.verification import require_passed

GATES = Gates("gates", recall_floor=0.1, auc_floor=0.52, recall_tolerance=0.01, auc_tolerance=0.005, parity_floor=0.999)
NEW = recall(IMAGE_SEARCH, where="new_items")
FIGURES = {PARITY: 1.0, RECALL: 0.5, AUC: 0.7, NEW: 0.4, catalogue("in_index"): 1.0, catalogue("in_table"): 1.0}
FIGURES |= {space("pair_cosine"): 0.2, serving("embed_ms"): 1.0, drift("categories_psi"): 0.1}
SAME = Difference(0.0, 0.0, 0.0, 0.05)


def made(changed: dict[str, float], gap: Difference = SAME, **more: Any) -> dict[str, Any]:
    """A manifest as far as its page reads it."""
    figures = {**FIGURES, **changed}
    verdicts = judge(GATES, figures, FIGURES, {RECALL: SAME, AUC: SAME, NEW: gap})
    found = {"evidence": [asdict(v) for v in verdicts], "passed": not any(v.stops for v in verdicts), "metrics": figures}
    found |= {"compared_with": {"release": 1}, "encoder": {"version": 2}, "ctr": None, "contract_id": "c-1"}
    times = {"trained_until": "2026-01-01T00:00:00+00:00", "created": "2026-02-02T00:00:00+00:00"}
    return {**found, **times, "windows": {"end": "2026-02-01T00:00:00+00:00"}, **more}


def filled(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_where_all_is_well_the_page_has_ten_lines() -> None:
    page = filled(evidence.description(2, made({})))
    assert len(page) <= 10
    assert page[0] == "**Release 2: ✅ passed** (compared with release 1)"
    assert [line.split(" | ")[0] for line in page[4:7]] == [f"| {gate}" for gate in (PARITY, RECALL, AUC)]
    assert page[7] == "6 more gates passed (slices 1, catalogue 2, space 1, serving 1, drift 1)."


def test_what_failed_and_what_cannot_be_told_stand_in_the_table() -> None:
    manifest = made({catalogue("in_index"): 0.9, drift("categories_psi"): 0.5}, Difference(-0.05, -0.2, 0.1, 0.15))
    page = evidence.description(2, manifest)
    assert page.startswith("**Release 2: ❌ failed**")
    assert f"| {catalogue('in_index')} | 0.9000 |  |  | at least the floor 0.99 | ❌ failed |" in page
    assert f"| {drift('categories_psi')} | 0.5000 |  |  | at most 0.25 | ⚠️ failed, does not block |" in page
    assert "below the champion's 0.4000 | ⚠️ too little data, does not block |" in page
    assert f"No difference below these could have been seen in these data: {NEW} 0.1500." in page
    assert evidence.tags(manifest)["gate"] == "failed"


@pytest.mark.parametrize(
    ("changed", "gap", "said", "todo"),
    [
        ({}, SAME, "passed", ["look at it: `MOON_PORT=8322 moon serve --release 2`", 'promote it: `moon promote 2 --reason "…"`']),
        ({AUC: 0.5}, SAME, "failed", ["keep the champion, and train again; `moon explain 2` shows each gate"]),
        ({RECALL: 0.45}, Difference(-0.05, -0.2, 0.1, 0.15), "too little data", ["wait for more queries and release it again"]),
    ],
)
def test_after_a_release_the_terminal_says_what_to_do(changed: dict[str, float], gap: Difference, said: str, todo: list[str]) -> None:
    verdicts = [asdict(v) for v in judge(GATES, {**FIGURES, **changed}, FIGURES, {RECALL: gap, AUC: SAME})]
    first, *gates = (told := list(evidence.summary(2, verdicts, 1, "mlartifacts/report")))[: -len(todo) - 1]
    assert first == f"release     2: {said}, compared with release 1"
    assert [line.removeprefix("gate        ") for line in gates] == list(evidence.lines(verdicts))
    assert told[-len(todo) - 1] == "report      mlartifacts/report"
    assert [line.startswith(f"next        {step}") for line, step in zip(told[-len(todo) :], todo, strict=True)] == [True] * len(todo)
    assert next(evidence.summary(1, verdicts, None, "")).endswith("the first release: compared with the floors")


def test_what_was_not_measured_says_why() -> None:
    manifest = made({})
    verdicts = judge(GATES, {name: value for name, value in FIGURES.items() if name != AUC}, FIGURES)
    manifest |= {"evidence": [asdict(v) for v in verdicts], "passed": False}
    assert "FAILED  ctr/auc was not measured (the release has no click model)" in list(evidence.lines(manifest["evidence"]))
    page = evidence.description(2, manifest)
    assert (
        "| ctr/auc | not measured: the release has no click model | 0.7000 |  | at most 0.005 below the champion's 0.7000 | ❌ failed |"
        in page
    )
    assert "nan" not in page
    with pytest.raises(GateError, match=r"did not pass its gates: ctr/auc was not measured \(the release has no click model\) → train"):
        require_passed(manifest)


def test_what_does_not_block_does_not_change_the_verdict() -> None:
    manifest = made({drift("categories_psi"): 0.5, recall_loss("int8"): 0.5}, Difference(-0.05, -0.2, 0.1, 0.15))
    assert (manifest["passed"], evidence.tags(manifest)["gate"]) == (True, "passed")
    told = list(evidence.lines(manifest["evidence"]))
    assert f"failed  {drift('categories_psi')} = 0.5000, must be at most 0.25 (does not block)" in told
    assert f"failed  {recall_loss('int8')} = 0.5000, must be at most 0.01 (does not block)" in told
    assert not [line for line in told if line.startswith("FAILED")]
    assert told[-1].startswith("passed  4 more gates passed (")


def test_what_blocks_is_written_large_on_the_terminal() -> None:
    told = list(evidence.lines(made({space("pair_cosine"): 0.99})["evidence"]))
    assert f"FAILED  {space('pair_cosine')} = 0.9900, must be at most 0.95" in told


def test_notes_are_read_and_a_manifest_of_before_has_none() -> None:
    assert "\nNote: look here.\n" in evidence.description(2, made({}, notes=["look here"]))
    old = made({})
    old["evidence"] = [{k: v for k, v in verdict.items() if k != "blocks"} for verdict in old["evidence"][:3]]
    page = evidence.description(2, old)
    assert page.startswith("**Release 2: ✅ passed**")
    assert "Note" not in page
    assert "more gates" not in page
