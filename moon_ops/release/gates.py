"""Gates: what a release must show before it may be promoted. Pure functions of figures; a verdict names what it compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moon_ops.metric_names import IMAGE_SEARCH, PARITY, TEXT_SEARCH, ctr, recall
from moon_ops.recipes.gates import Gates

RECALL, AUC = recall(IMAGE_SEARCH), ctr("auc")
TEXT_RECALL = recall(TEXT_SEARCH)  # of a shop where nobody searches by picture


@dataclass(frozen=True)
class Verdict:
    """One gate: the candidate's value, what it had to reach and why, and whether it did."""

    gate: str
    value: float
    threshold: float
    rule: str
    champion: float | None
    passed: bool


def judge(gates: Gates, candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> list[Verdict]:
    """A verdict per gate. ``champion`` holds the champion's figures on the same queries and impressions; None for the first release.

    A shop without click sequences has no ``ctr/auc``, and its gate does not apply; one without photographs to judge by is judged by its
    texts. A figure that is not a number fails.
    """
    verdicts = [_verdict(PARITY, candidate, None, gates.parity_floor, 0.0)]
    by_picture = RECALL in candidate or TEXT_RECALL not in candidate or (champion and RECALL in champion)
    recall = RECALL if by_picture else TEXT_RECALL
    verdicts.append(_verdict(recall, candidate, champion, gates.recall_floor, gates.recall_tolerance))
    if AUC in candidate or (champion and AUC in champion):  # a champion with a click model is not followed by one without
        verdicts.append(_verdict(AUC, candidate, champion, gates.auc_floor, gates.auc_tolerance))
    return verdicts


def _verdict(gate: str, candidate: Mapping[str, float], champion: Mapping[str, float] | None, floor: float, tolerance: float) -> Verdict:
    value = candidate.get(gate, math.nan)
    best = champion.get(gate) if champion else None
    if best is None:
        return Verdict(gate, value, floor, f"at least the floor {floor:g}", None, value >= floor)
    threshold = best - tolerance
    return Verdict(gate, value, threshold, f"at most {tolerance:g} below the champion's {best:.4f}", best, value >= threshold)
