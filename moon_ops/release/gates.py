"""Gates: what a release must show before it may be promoted. Pure functions of figures; a verdict names what it compared.

A release may be a little worse than the champion, by the tolerance: measurements scatter. Releases that are each a little worse than the
one before would add up. So the tolerance is spent: what the champion itself lies below the best release before it (its debt) is taken
from it, and no release falls below the floor.

A slice (new items, long tail, …) has few queries or clicks. It fails only if it has surely lost: if its whole interval lies below what is
allowed. One that cannot be told is reported and stops nothing, because else no small shop could ever promote.
What a release costs and how complete it is are limits; what is not measured, because there is nothing to measure it on, has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moon_ops.metric_names import (
    IMAGE_SEARCH,
    PARITY,
    TEXT_SEARCH,
    catalogue,
    ctr,
    drift,
    leakage,
    recall,
    recall_loss,
    serving,
    space,
)
from moon_ops.recipes.gates import Gates
from moon_ops.settings import VARIANTS

if TYPE_CHECKING:
    from moon_ops.ctr.metrics import Difference

RECALL, AUC = recall(IMAGE_SEARCH), ctr("auc")
TEXT_RECALL = recall(TEXT_SEARCH)  # of a shop where nobody searches by picture
PASSED, FAILED, TOO_LITTLE = "passed", "failed", "too little data"
MISSING = {  # why a main figure may not be there
    PARITY: "the encoder has no certificate",
    RECALL: "no photograph from after its training led to a purchase",
    TEXT_RECALL: "no words from after its training led to a purchase",
    AUC: "the release has no click model",
}
MEGABYTE = 1e6


@dataclass(frozen=True)
class Verdict:
    """One gate: the candidate's value, what it had to reach and why, and whether it did.

    Where both were measured on the same data, ``low`` to ``high`` is the 95 % interval of the difference to the champion, and
    ``detectable`` the least difference that the data could have shown. ``outcome`` of a gate that was not passed is ``too little data``
    if the interval leaves open that the candidate is good enough. ``debt`` is how far it lies below the best release before it.
    One that does not block is told, and the release may be promoted all the same. ``missing`` says why a figure was not measured at all.
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
    blocks: bool = True
    missing: str = ""

    @property
    def stops(self) -> bool:
        """Whether the release may not be promoted because of it."""
        return self.blocks and not self.passed


def stopping(evidence: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The verdicts of a manifest for which the release may not be promoted; in older ones every verdict blocks."""
    return [verdict for verdict in evidence if verdict.get("blocks", True) and not verdict["passed"]]


def sentence(verdict: Mapping[str, Any], must: str = "it must be") -> str:
    """What a gate has found, in words: its value and what that must be, or why there is none."""
    if not math.isnan(verdict["value"]):
        return f"{verdict['gate']} = {verdict['value']:.4f}, {must} {verdict['rule']}"
    missing = verdict.get("missing")
    return f"{verdict['gate']} was not measured ({missing})" if missing else f"{verdict['gate']} is not a number, {must} {verdict['rule']}"


def judge(
    gates: Gates,
    candidate: Mapping[str, float],
    champion: Mapping[str, float] | None,
    differences: Mapping[str, Difference] | None = None,
    debts: Mapping[str, float] | None = None,
    *,
    variant: str = VARIANTS[0],
) -> list[Verdict]:
    """A verdict per gate, the main ones first. ``champion`` holds the champion's figures on the same queries and impressions; None for the
    first release. ``differences`` are paired ones; those of no main gate are slices'. ``debts`` are what the champion lies below the best
    release before it, by gate; ``variant`` is the one of the encoder's graphs that is to be served.

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
    verdicts = [v if v.gate in candidate else replace(v, missing=MISSING[v.gate]) for v in verdicts]
    main = {verdict.gate for verdict in verdicts}
    for gate, gap in (differences or {}).items():
        if gate not in main and champion is not None and gate in champion:
            verdicts.append(_slice(gate, candidate.get(gate, math.nan), champion[gate], gates.slice_tolerance, gap))
    return [*verdicts, *_limits(gates, candidate, variant), *_costs(gates, candidate, champion or {}), *_shift(gates, candidate)]


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


def _slice(gate: str, value: float, champion: float, tolerance: float, gap: Difference) -> Verdict:
    """Failed if the whole interval lies below what is allowed, passed if the whole of it lies above, else nobody can tell."""
    outcome = PASSED if gap.low >= -tolerance else FAILED if gap.high < -tolerance else TOO_LITTLE
    if math.isnan(gap.low + gap.high + value):
        outcome = FAILED  # what is no number is a fault, and not chance
    rule = f"not surely more than {tolerance:g} below the champion's {champion:.4f}"
    interval = (gap.low, gap.high, gap.detectable)
    return Verdict(gate, value, champion - tolerance, rule, champion, outcome == PASSED, outcome, *interval, blocks=outcome != TOO_LITTLE)


def _limits(gates: Gates, candidate: Mapping[str, float], variant: str) -> Iterator[Verdict]:
    """What needs no champion: recall lost by variants, leakage, completeness and freshness, a sound space."""
    for made in VARIANTS:
        if (gate := recall_loss(made)) in candidate:
            yield _at_most(gate, candidate[gate], gates.variant_loss_ceiling, blocks=made == variant)
    for gate in (leakage("encoder"), leakage("click_model")):
        if gate in candidate:
            yield replace(_first(gate, candidate[gate], 0.0), rule="0 days or more, so that the judged time lies after the training")
    least = {catalogue(name): gates.coverage_floor for name in ("with_vector", "in_index", "in_table")}
    least |= {space("effective_rank"): gates.effective_rank_floor}
    most = {catalogue("lag_hours"): gates.lag_ceiling_hours, space("broken"): gates.broken_ceiling}
    most |= {space("norm_error"): gates.norm_tolerance, space("pair_cosine"): gates.pair_cosine_ceiling}
    yield from (_first(gate, candidate[gate], floor) for gate, floor in least.items() if gate in candidate)
    yield from (_at_most(gate, candidate[gate], ceiling) for gate, ceiling in most.items() if gate in candidate)


def _costs(gates: Gates, candidate: Mapping[str, float], champion: Mapping[str, float]) -> Iterator[Verdict]:
    """Milliseconds and bytes, beside the champion's where both were measured in one process, and below a ceiling."""
    ceilings = {serving("embed_ms"): gates.latency_ceiling_ms, serving("score_ms"): gates.latency_ceiling_ms}
    ceilings[serving("bytes")] = gates.size_ceiling_mb * MEGABYTE
    for gate, ceiling in ceilings.items():
        if gate not in candidate:
            continue
        in_time = gate != serving("bytes")
        ratio, slack = (gates.latency_ratio, gates.latency_slack_ms) if in_time else (gates.size_ratio, 0.0)
        best, limits = champion.get(gate), dict[str, float]()
        if ceiling:
            limits[f"at most the ceiling {ceiling:g}"] = ceiling
        if best is not None and ratio:
            more = f", or {slack:g} ms more than it" if in_time and slack else ""
            limits[f"at most {ratio:g} times the champion's {best:.4g}{more}"] = max(ratio * best, best + slack)
        if limits:
            rule, threshold = min(limits.items(), key=lambda limit: limit[1])
            yield replace(_at_most(gate, candidate[gate], threshold), rule=rule, champion=best)


def _shift(gates: Gates, candidate: Mapping[str, float]) -> Iterator[Verdict]:
    """A warning where people ask for other things than in training; not where chance explains it."""
    gate = drift("categories_psi")
    if gate in candidate and gates.categories_psi_ceiling:
        found = _at_most(gate, candidate[gate], gates.categories_psi_ceiling, blocks=False)
        chance = candidate.get(drift("categories_psi_chance"), 0.0)
        by_chance = not found.passed and candidate[gate] <= chance
        yield replace(found, outcome=TOO_LITTLE, detectable=chance) if by_chance else found


def _at_most(gate: str, value: float, ceiling: float, *, blocks: bool = True) -> Verdict:
    passed = value <= ceiling
    return Verdict(gate, value, ceiling, f"at most {ceiling:g}", None, passed, PASSED if passed else FAILED, blocks=blocks)
