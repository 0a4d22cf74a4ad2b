"""Gates: what a release must show before it may be promoted. Pure functions of figures; a verdict names what it compared.

A release may be a little worse than the champion, by the tolerance: measurements scatter. Releases that are each a little worse than the
one before would add up. So the tolerance is spent: what the champion itself lies below the best release before it (its debt) is taken
from it, and no release falls below the floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moon_ops.metric_names import IMAGE_SEARCH, PARITY, TEXT_SEARCH, ctr, recall
from moon_ops.recipes.gates import Gates

if TYPE_CHECKING:
    from moon_ops.ctr.metrics import Difference

RECALL, AUC = recall(IMAGE_SEARCH), ctr("auc")
TEXT_RECALL = recall(TEXT_SEARCH)  # of a shop where nobody searches by picture
PASSED, FAILED, TOO_LITTLE = "passed", "failed", "too little data"


@dataclass(frozen=True)
class Verdict:
    """One gate: the candidate's value, what it had to reach and why, and whether it did.

    Where both were measured on the same data, ``low`` to ``high`` is the 95 % interval of the difference to the champion, and
    ``detectable`` the least difference that the data could have shown. ``outcome`` of a gate that was not passed is ``too little data``
    if the interval leaves open that the candidate is good enough. ``debt`` is how far it lies below the best release before it.
    """

    gate: str
    value: float
    threshold: float
    rule: str
    champion: float | None
    passed: bool
    outcome: str = ""
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    debt: float = 0.0


def judge(
    gates: Gates,
    candidate: Mapping[str, float],
    champion: Mapping[str, float] | None,
    differences: Mapping[str, Difference] | None = None,
    debts: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """A verdict per gate. ``champion`` holds the champion's figures on the same queries and impressions; None for the first release.
    ``differences`` are paired ones, ``debts`` what the champion lies below the best release before it, by gate.

    A shop without click sequences has no ``ctr/auc``, and its gate does not apply; one without photographs to judge by is judged by its
    texts. A figure that is not a number fails.
    """
    by_picture = RECALL in candidate or TEXT_RECALL not in candidate or (champion and RECALL in champion)
    chosen = [(RECALL if by_picture else TEXT_RECALL, gates.recall_floor, gates.recall_tolerance)]
    if AUC in candidate or (champion and AUC in champion):  # a champion with a click model is not followed by one without
        chosen.append((AUC, gates.auc_floor, gates.auc_tolerance))
    verdicts = [_first(PARITY, candidate.get(PARITY, math.nan), gates.parity_floor)]
    for gate, floor, tolerance in chosen:
        value, best = candidate.get(gate, math.nan), champion.get(gate) if champion else None
        if best is None:
            verdicts.append(_first(gate, value, floor))
        else:
            left = (floor, tolerance, (debts or {}).get(gate, 0.0))
            verdicts.append(_beside(gate, value, best, left, (differences or {}).get(gate)))
    return verdicts


def _first(gate: str, value: float, floor: float) -> Verdict:
    passed = value >= floor
    return Verdict(gate, value, floor, f"at least the floor {floor:g}", None, passed, PASSED if passed else FAILED)


def _beside(gate: str, value: float, champion: float, left: tuple[float, float, float], gap: Difference | None) -> Verdict:
    """The verdict beside a champion; ``left`` is floor, tolerance and the champion's debt."""
    floor, tolerance, debt = left
    allowed = max(0.0, tolerance - debt)
    by_champion = champion - allowed
    threshold = max(floor, by_champion)
    rule = f"at most {allowed:g} below the champion's {champion:.4f}"
    if debt > 0:
        rule += f", which is {debt:.4f} below the best before it"
    if floor > by_champion:
        rule = f"at least the floor {floor:g}"
    passed, difference = value >= floor and value >= by_champion, value - champion  # what is no number fails
    open_still = gap is not None and value >= floor and gap.high >= -allowed
    outcome = PASSED if passed else TOO_LITTLE if open_still else FAILED
    made = Verdict(gate, value, threshold, rule, champion, passed, outcome, debt=max(0.0, debt - difference))
    return made if gap is None else replace(made, low=gap.low, high=gap.high, detectable=gap.detectable)
