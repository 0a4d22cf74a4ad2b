"""A search of learning rates that is the same for every recipe: one grid, the same seeds, and the choice by validation, not by what judges.

Recipes that are compared at rates which suit one of them tell of the rates. Validation is that of :mod:`moon_ops.encoder.validation`:
purchases from before ``trained_until`` that are not trained on. What judges, after ``trained_until``, has no part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moon_ops.errors import InputError
from moon_ops.metric_names import TEXT_SEARCH, VALIDATED, recall
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.studies.arms import Arm
from moon_ops.studies.encoder import HEADLINE, Outcome, mean_shown

RATES = ("learning_rate", "matrix_learning_rate")  # those of the tower and of stage 2b are shares of these
MEASURED = 10  # times that a training is validated where its recipe does not say how often


@dataclass(frozen=True)
class Chosen:
    """What the search found for a recipe: the multiplier of its rates, and the mean validation recall of each that was tried."""

    recipe: str
    multiplier: float
    validated: dict[float, float]

    @property
    def at_the_edge(self) -> bool:
        """Whether the grid may be too small: the best is its first or last."""
        return self.multiplier in (min(self.validated), max(self.validated)) and len(self.validated) > 1


def grid(text: str) -> list[float]:
    """Multipliers from text, e.g. ``0.3,1,3``, ascending, each once, the shipped rates (1) always; :class:`InputError` for other words."""
    try:
        found = sorted({1.0, *(float(part) for part in text.split(",") if part.strip())})
    except ValueError:
        found = []
    if len(found) < 2 or not all(0 < one < math.inf for one in found):
        problem = f"multipliers = {text!r} must be positive numbers with commas, one of them not 1"
        raise InputError(problem, action="give e.g. 0.3,1,3")
    return found


def validated(full: EncoderRecipe) -> EncoderRecipe:
    """The recipe with validation, as its own settings say, or else ten times in a training that takes all of its steps."""
    if full.training.validate_steps:
        return full
    return replace(full, training=replace(full.training, validate_steps=max(1, full.steps // MEASURED), patience=0))


def arms(full: EncoderRecipe, multipliers: Sequence[float]) -> list[Arm]:
    """An arm for each multiplier of all rates; :class:`InputError` for one with which a rate would be 1 or more."""
    for name in RATES:
        if (most := max(multipliers) * getattr(full.training, name)) >= 1:
            problem = f"multipliers: {max(multipliers):g} makes training.{name} of {full.name} {most:g}, which must be below 1"
            raise InputError(problem, action="leave it out")
    return [Arm(_name(one), lambda recipe, one=one: _multiplied(recipe, one)) for one in multipliers]  # type: ignore[misc]


def _name(multiplier: float) -> str:
    return f"rates x {multiplier:g}"


def _multiplied(recipe: EncoderRecipe, by: float) -> EncoderRecipe:
    training = recipe.training
    rates = {name: getattr(training, name) * by for name in RATES}
    return replace(recipe, training=replace(training, **rates))


def choose(recipe: str, outcomes: Sequence[Outcome], multipliers: Sequence[float], seeds: Sequence[int]) -> Chosen:
    """The multiplier with the best mean validation recall; of equal ones the nearest to the shipped rates, then the smaller."""
    found = {one: float(np.mean(_of(outcomes, one, seeds, VALIDATED))) for one in multipliers}
    return Chosen(recipe, min(found, key=lambda one: (-found[one], abs(math.log(one)), one)), found)


def _of(outcomes: Sequence[Outcome], multiplier: float, seeds: Sequence[int], metric: str) -> list[float]:
    """The metric of each seed; not a number where it was not measured."""
    known = {(o.arm, o.seed): o for o in outcomes}
    return [known[_name(multiplier), seed].metrics.get(metric, math.nan) for seed in seeds]


def judged(outcomes: dict[str, list[Outcome]]) -> str:
    """By what the table judges: recall@10 of picture queries, or of words where nobody asked with a picture."""
    pictured = any(HEADLINE in outcome.metrics for some in outcomes.values() for outcome in some)
    return HEADLINE if pictured else recall(TEXT_SEARCH)


def table(chosen: Sequence[Chosen], outcomes: dict[str, list[Outcome]], seeds: Sequence[int], metric: str) -> str:
    """A Markdown table, a recipe a row: what validation chose, and the ``metric`` after ``trained_until`` at the shipped and at the chosen
    rates, means over seeds with 95 % intervals, the difference paired by seed.
    """
    head = f"| recipe | validation recall@10 by multiplier | chosen | {metric}, shipped rates | chosen rates | difference |"
    lines = [head, "|" + "---|" * 6]
    for one in chosen:
        shipped, best = (_of(outcomes[one.recipe], multiplier, seeds, metric) for multiplier in (1.0, one.multiplier))
        tried = ", ".join(f"{multiplier:g}: {found:.3f}" for multiplier, found in one.validated.items())
        edge = " (the grid's edge: try more)" if one.at_the_edge else ""
        gap = "" if one.multiplier == 1 else mean_shown([b - a for a, b in zip(shipped, best, strict=True)], signed=True)
        cells = [one.recipe, tried, f"{one.multiplier:g}{edge}", mean_shown(shipped), mean_shown(best), gap]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
