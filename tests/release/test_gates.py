"""Gates: floors for the first release, the champion's figures for the next, and nothing passes that is not a number."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from moon_ops.ctr.metrics import Difference
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.release.gates import AUC, PARITY, RECALL, TEXT_RECALL, Verdict, judge, sentence
from moon_ops.settings import ROOT

GATES = Gates("gates", recall_floor=0.1, auc_floor=0.52, recall_tolerance=0.01, auc_tolerance=0.005, parity_floor=0.999)
GOOD = {PARITY: 1.0, RECALL: 0.5, AUC: 0.7}


def passed(candidate: dict[str, float], champion: dict[str, float] | None = None) -> dict[str, bool]:
    return {v.gate: v.passed for v in judge(GATES, candidate, champion)}


def test_the_first_release_must_reach_the_floors() -> None:
    at_the_floors = {PARITY: 0.999, RECALL: 0.1, AUC: 0.52}
    assert passed(at_the_floors) == {PARITY: True, RECALL: True, AUC: True}
    for gate, floor in at_the_floors.items():
        assert passed({**at_the_floors, gate: floor - 1e-9}) == {**dict.fromkeys(at_the_floors, True), gate: False}


def test_a_later_release_may_fall_below_the_champion_by_the_tolerance() -> None:
    champion = {PARITY: 1.0, RECALL: 0.5, AUC: 0.7}
    assert passed({PARITY: 1.0, RECALL: 0.4901, AUC: 0.6951}, champion) == {PARITY: True, RECALL: True, AUC: True}
    assert passed({PARITY: 1.0, RECALL: 0.4899, AUC: 0.6951}, champion) == {PARITY: True, RECALL: False, AUC: True}
    assert passed({PARITY: 1.0, RECALL: 0.4901, AUC: 0.6949}, champion) == {PARITY: True, RECALL: True, AUC: False}


def test_small_losses_do_not_add_up() -> None:
    """Five releases, each .008 below the one before: the tolerance of .01 is spent once, against the best of them."""
    champion, debts, reached = dict(GOOD), dict[str, float](), [0.5]
    for _ in range(5):
        candidate = {**GOOD, RECALL: champion[RECALL] - 0.008}
        verdict = judge(GATES, candidate, champion, None, debts)[1]
        if verdict.passed:
            champion, debts = candidate, {RECALL: verdict.debt}
            reached.append(candidate[RECALL])
    assert reached == [0.5, pytest.approx(0.492)]
    rule = judge(GATES, {**GOOD, RECALL: 0.489}, champion, None, debts)[1].rule
    assert rule == "at most 0.002 below the champion's 0.4920, which is 0.0080 below the best before it"
    assert judge(GATES, {**GOOD, RECALL: 0.499}, champion, None, debts)[1].debt == pytest.approx(0.001), "what is won back counts"


def test_no_release_falls_below_the_floor_though_the_champion_is_near_it() -> None:
    verdict = judge(GATES, {**GOOD, RECALL: 0.099}, {**GOOD, RECALL: 0.105})[1]
    assert (verdict.passed, verdict.threshold, verdict.rule, verdict.outcome) == (False, 0.1, "at least the floor 0.1", "failed")


def test_a_gate_that_cannot_tell_says_so() -> None:
    """Sixteen photographs: one of them is .0625, and the interval leaves open that the candidate is as good."""
    open_still = Difference(-0.0625, -0.1875, 0.0, 0.17)
    verdict = judge(GATES, {**GOOD, RECALL: 0.4375}, GOOD, {RECALL: open_still})[1]
    assert (verdict.passed, verdict.outcome, verdict.low, verdict.detectable) == (False, "too little data", -0.1875, 0.17)
    clear = Difference(-0.0625, -0.08, -0.04, 0.03)
    assert judge(GATES, {**GOOD, RECALL: 0.4375}, GOOD, {RECALL: clear})[1].outcome == "failed"


def test_parity_is_an_absolute_rule() -> None:
    """A champion that was exported badly does not excuse the next one."""
    assert passed({**GOOD, PARITY: 0.9}, {**GOOD, PARITY: 0.9})[PARITY] is False


def test_a_verdict_names_what_it_compared() -> None:
    assert judge(GATES, {PARITY: 1.0, RECALL: 0.3}, {RECALL: 0.4}) == [
        Verdict(PARITY, 1.0, 0.999, "at least the floor 0.999", None, True, "passed"),
        Verdict(RECALL, 0.3, 0.4 - 0.01, "at most 0.01 below the champion's 0.4000", 0.4, False, "failed", debt=0.4 - 0.3),
    ]


@pytest.mark.parametrize("champion", [None, GOOD])
@pytest.mark.parametrize("gate", [PARITY, RECALL, AUC])
def test_a_figure_that_is_not_a_number_fails(gate: str, champion: dict[str, float] | None) -> None:
    assert passed({**GOOD, gate: math.nan}, champion) == {**dict.fromkeys(GOOD, True), gate: False}


@pytest.mark.parametrize("gate", [PARITY, RECALL])
def test_a_figure_that_is_not_there_fails(gate: str) -> None:
    assert passed({name: value for name, value in GOOD.items() if name != gate})[gate] is False


def test_a_shop_without_click_sequences_has_no_gate_for_clicks() -> None:
    assert passed({PARITY: 1.0, RECALL: 0.5}) == {PARITY: True, RECALL: True}


def test_a_shop_that_is_searched_by_text_alone_is_judged_by_text() -> None:
    assert passed({PARITY: 1.0, TEXT_RECALL: 0.4}) == {PARITY: True, TEXT_RECALL: True}
    assert passed({PARITY: 1.0, TEXT_RECALL: 0.4}, {PARITY: 1.0, TEXT_RECALL: 0.5}) == {PARITY: True, TEXT_RECALL: False}
    assert passed({PARITY: 1.0, TEXT_RECALL: 0.9}, GOOD)[RECALL] is False, "not where the champion found photographs to be judged by"


def test_a_release_without_a_click_model_does_not_follow_one_with() -> None:
    assert passed({PARITY: 1.0, RECALL: 0.5}, GOOD) == {PARITY: True, RECALL: True, AUC: False}
    assert (
        sentence(asdict(judge(GATES, {PARITY: 1.0, RECALL: 0.5}, GOOD)[2])) == "ctr/auc was not measured (the release has no click model)"
    )


def test_a_gate_says_what_it_has_found() -> None:
    """A number, none because nothing was measured, and one that is none."""
    found = [sentence(asdict(verdict)) for verdict in judge(GATES, {RECALL: 0.05, AUC: math.nan}, None)]
    assert found == [
        f"{PARITY} was not measured (the encoder has no certificate)",
        f"{RECALL} = 0.0500, it must be at least the floor 0.1",
        f"{AUC} is not a number, it must be at least the floor 0.52",
    ]
    assert sentence(asdict(judge(GATES, {PARITY: 1.0}, None)[1])).startswith(f"{RECALL} was not measured (no photograph from after")
    before = {"gate": "ctr/auc", "value": 0.4, "rule": "at least 0.5", "passed": False}  # as an older manifest has it
    assert sentence(before) == "ctr/auc = 0.4000, it must be at least 0.5"


def test_a_champion_without_a_click_model_leaves_the_floor() -> None:
    verdict = judge(GATES, GOOD, {PARITY: 1.0, RECALL: 0.5})[2]
    assert (verdict.gate, verdict.threshold, verdict.champion, verdict.passed) == (AUC, 0.52, None, True)


def test_a_champion_whose_figure_is_not_a_number_lets_nothing_pass() -> None:
    assert passed(GOOD, {**GOOD, RECALL: math.nan})[RECALL] is False


def test_the_gates_of_the_project_are_a_recipe() -> None:
    found = recipe(Gates, "gates", ROOT / "models")
    assert found.parity_floor >= 0.999
    assert found.auc_floor > 0.5
    older = Gates(
        "gates", *(getattr(found, name) for name in ("recall_floor", "auc_floor", "recall_tolerance", "auc_tolerance", "parity_floor"))
    )
    assert found == older, "what the file says of later gates is their default"
