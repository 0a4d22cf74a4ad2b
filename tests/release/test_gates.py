"""Gates: floors for the first release, the champion's figures for the next, and nothing passes that is not a number."""

from __future__ import annotations

import math

import pytest

from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.release.gates import AUC, PARITY, RECALL, TEXT_RECALL, Verdict, judge
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


def test_parity_is_an_absolute_rule() -> None:
    """A champion that was exported badly does not excuse the next one."""
    assert passed({**GOOD, PARITY: 0.9}, {**GOOD, PARITY: 0.9})[PARITY] is False


def test_a_verdict_names_what_it_compared() -> None:
    assert judge(GATES, {PARITY: 1.0, RECALL: 0.3}, {RECALL: 0.4}) == [
        Verdict(PARITY, 1.0, 0.999, "at least the floor 0.999", None, True),
        Verdict(RECALL, 0.3, 0.4 - 0.01, "at most 0.01 below the champion's 0.4000", 0.4, False),
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


def test_a_champion_without_a_click_model_leaves_the_floor() -> None:
    verdict = judge(GATES, GOOD, {PARITY: 1.0, RECALL: 0.5})[2]
    assert (verdict.gate, verdict.threshold, verdict.champion, verdict.passed) == (AUC, 0.52, None, True)


def test_a_champion_whose_figure_is_not_a_number_lets_nothing_pass() -> None:
    assert passed(GOOD, {**GOOD, RECALL: math.nan})[RECALL] is False


def test_the_gates_of_the_project_are_a_recipe() -> None:
    found = recipe(Gates, "gates", ROOT / "models")
    assert found.parity_floor >= 0.999
    assert found.auc_floor > 0.5
