"""Gates beside recall and AUC: slices that may not lose, variants, costs, completeness, sound vectors, and what is only told."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from moon_ops.ctr.metrics import Difference
from moon_ops.metric_names import IMAGE_SEARCH, catalogue, ctr, drift, leakage, recall, recall_loss, serving, space
from moon_ops.recipes.gates import Gates
from moon_ops.release.gates import AUC, PARITY, RECALL, Verdict, judge, stopping

GATES = Gates("gates", recall_floor=0.1, auc_floor=0.52, recall_tolerance=0.01, auc_tolerance=0.005, parity_floor=0.999)
GOOD = {PARITY: 1.0, RECALL: 0.5, AUC: 0.7}
NEW, TAIL = recall(IMAGE_SEARCH, where="new_items"), ctr("auc", "long_tail")


def verdict(gate: str, candidate: dict[str, float], champion: dict[str, float] | None = None, gates: Gates = GATES) -> Verdict | None:
    return next((v for v in judge(gates, {**GOOD, **candidate}, champion and {**GOOD, **champion}) if v.gate == gate), None)


def sliced(gap: Difference, value: float = 0.4) -> Verdict:
    made = judge(GATES, {**GOOD, NEW: value}, {**GOOD, NEW: 0.5}, {NEW: gap})
    assert [v.gate for v in made] == [PARITY, RECALL, AUC, NEW]
    return made[-1]


def test_a_slice_fails_only_if_it_has_surely_lost() -> None:
    lost = sliced(Difference(-0.1, -0.15, -0.011, 0.05))
    assert (lost.passed, lost.outcome, lost.stops) == (False, "failed", True)
    assert lost.rule == "not surely more than 0.01 below the champion's 0.5000"
    assert (lost.threshold, lost.champion, lost.low, lost.high, lost.detectable) == (0.49, 0.5, -0.15, -0.011, 0.05)


@pytest.mark.parametrize(("low", "high"), [(-0.15, -0.01), (-0.15, 0.02), (-0.011, 0.3)])
def test_a_slice_that_cannot_be_told_is_reported_and_stops_nothing(low: float, high: float) -> None:
    found = sliced(Difference(-0.1, low, high, 0.05))
    assert (found.passed, found.outcome, found.blocks, found.stops) == (False, "too little data", False, False)


def test_a_slice_that_has_surely_not_lost_passes() -> None:
    found = sliced(Difference(0.02, -0.01, 0.05, 0.05), 0.52)
    assert (found.passed, found.outcome, found.stops) == (True, "passed", False)


@pytest.mark.parametrize("gap", [Difference(math.nan, math.nan, math.nan, math.nan), Difference(-0.1, -0.2, math.nan, 0.1)])
def test_a_slice_that_is_not_a_number_fails(gap: Difference) -> None:
    assert sliced(gap).stops
    assert sliced(Difference(0.0, 0.0, 0.0, 0.01), math.nan).stops


def test_the_first_release_has_no_slices_to_lose() -> None:
    assert [v.gate for v in judge(GATES, {**GOOD, NEW: 0.1, TAIL: 0.5}, None)] == [PARITY, RECALL, AUC]


def test_the_variant_that_is_served_may_not_lose_recall_and_the_others_are_told() -> None:
    figures = {**GOOD, recall_loss("int8"): 0.011, recall_loss("fp16"): 0.0}
    outcomes = {served: {v.gate: (v.passed, v.stops) for v in judge(GATES, figures, None, variant=served)} for served in ("fp32", "int8")}
    assert outcomes["fp32"][recall_loss("int8")] == (False, False)
    assert outcomes["int8"][recall_loss("int8")] == (False, True)
    assert outcomes["int8"][recall_loss("fp16")] == (True, False)


@pytest.mark.parametrize(
    ("gate", "best", "most"),
    [
        (serving("embed_ms"), 10.0, 20.0),  # twice the champion's
        (serving("embed_ms"), 1.0, 6.0),  # five milliseconds more are noise
        (serving("score_ms"), 100.0, 200.0),
        (serving("bytes"), 1000.0, 2000.0),
    ],
)
def test_a_release_may_not_cost_more_than_twice_the_champion(gate: str, best: float, most: float) -> None:
    at, above = verdict(gate, {gate: most}, {gate: best}), verdict(gate, {gate: most * 1.001}, {gate: best})
    assert at is not None
    assert above is not None
    assert (at.passed, at.champion, at.threshold) == (True, best, most)
    assert (above.passed, above.stops) == (False, True)


def test_a_ceiling_holds_for_the_first_release_and_the_stricter_limit_counts() -> None:
    gate, strict = serving("embed_ms"), replace(GATES, latency_ceiling_ms=30.0, size_ceiling_mb=2.0)
    assert verdict(gate, {gate: 1e9}) is None, "no champion and no ceiling: no limit"
    first = verdict(gate, {gate: 31.0}, gates=strict)
    assert first is not None
    assert (first.passed, first.rule) == (False, "at most the ceiling 30")
    later = verdict(gate, {gate: 31.0}, {gate: 20.0}, strict)
    assert later is not None
    assert (later.passed, later.threshold) == (False, 30.0)
    ratio = verdict(gate, {gate: 21.0}, {gate: 10.0}, strict)
    assert ratio is not None
    assert (ratio.passed, ratio.rule) == (False, "at most 2 times the champion's 10, or 5 ms more than it")
    large = verdict(serving("bytes"), {serving("bytes"): 2_000_001.0}, gates=strict)
    assert large is not None
    assert not large.passed
    assert verdict(gate, {gate: 1e9}, {gate: 1.0}, replace(GATES, latency_ratio=0.0)) is None


@pytest.mark.parametrize(
    ("gate", "good", "bad"),
    [
        (catalogue("with_vector"), 0.99, 0.9899),
        (catalogue("in_index"), 0.99, 0.9899),
        (catalogue("in_table"), 0.99, 0.9899),
        (catalogue("lag_hours"), 48.0, 48.1),
        (space("broken"), 0.0, 0.001),
        (space("norm_error"), 0.01, 0.011),
        (space("pair_cosine"), 0.95, 0.951),
        (space("effective_rank"), 2.0, 1.99),
        (leakage("encoder"), 0.0, -0.001),
        (leakage("click_model"), 0.0, -0.001),
    ],
)
def test_each_limit_has_its_edge_and_blocks(gate: str, good: float, bad: float) -> None:
    found = {value: verdict(gate, {gate: value}) for value in (good, bad, math.nan)}
    assert {value: v and (v.passed, v.stops) for value, v in found.items() if not math.isnan(value)} == {
        good: (True, False),
        bad: (False, True),
    }
    assert all(v is not None and v.stops for value, v in found.items() if math.isnan(value)), "what is no number fails"


def test_a_shift_of_what_is_asked_for_is_told_and_stops_nothing() -> None:
    gate, chance = drift("categories_psi"), drift("categories_psi_chance")
    shifted = verdict(gate, {gate: 0.3, chance: 0.1})
    by_chance = verdict(gate, {gate: 0.3, chance: 0.4})
    assert shifted is not None
    assert by_chance is not None
    assert (shifted.outcome, shifted.stops) == ("failed", False)
    assert (by_chance.outcome, by_chance.stops, by_chance.detectable) == ("too little data", False, 0.4)
    assert verdict(gate, {gate: 0.3}, gates=replace(GATES, categories_psi_ceiling=0.0)) is None


def test_in_manifests_of_before_every_verdict_blocks() -> None:
    old = [{"gate": RECALL, "passed": False}, {"gate": AUC, "passed": True}]
    assert [v["gate"] for v in stopping(old)] == [RECALL]
    undecided = asdict(sliced(Difference(-0.1, -0.2, 0.1, 0.1)))
    assert stopping([undecided]) == []
