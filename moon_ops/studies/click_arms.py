"""The arms of the click model studies: what each changes in a recipe, and what it learns from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moon_ops.errors import InputError
from moon_ops.release.windows import Windows

BASELINE = "ctr-din"
MODELS = (BASELINE, *(f"ctr-{n}" for n in ("raw", "simscore", "simtier", "sata", "make", "simtier-sata", "simtier-make", "cube")))
AWARE = tuple(f"ctr-{n}" for n in ("din-cos-query", "raw-cos-query", "muse-cos-query", "simtier-make"))  # all of them read the query
PARTS = ("items", "queries", "by_id", "fusion", "content", "cosines", "vectors", "match")  # of CUBE
LENGTHS = (1, 2, 5, 10, 20, 50, 100)
DAY = dt.timedelta(days=1)
Learned = Literal["all", "later", "before"]


@dataclass(frozen=True)
class ClickArm:
    """A recipe with some of its values changed, under a name.

    ``learned``: rows from before the judged window (``all``), only those after the encoder's training (``later``), or those of as long a
    time just before its end (``before``). With ``every`` so many days of the judged window a model is trained anew, on all rows before.
    """

    name: str
    recipe: str
    change: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()  # as the command line spells them
    learned: Learned = "all"
    every: int = 0  # days; 0: trained once

    def trainings(self, windows: Windows) -> list[Windows]:
        """One for each training: from ``start`` to ``ctr_until`` is learned from, from there or later to ``end`` is judged."""
        until = windows.trained_until
        if self.learned == "later":
            return [replace(windows, start=until)]
        if self.learned == "before":
            return [replace(windows, start=max(windows.start, until - (windows.ctr_until - until)), ctr_until=until)]
        if not self.every:
            return [windows]
        cuts = [windows.ctr_until]
        while cuts[-1] + self.every * DAY < windows.end:
            cuts.append(cuts[-1] + self.every * DAY)
        return [replace(windows, ctr_until=cut, end=end) for cut, end in zip(cuts, [*cuts[1:], windows.end], strict=True)]


def models(names: Sequence[str]) -> list[ClickArm]:
    """An arm for each recipe; the baseline is always one."""
    return [ClickArm(name, name) for name in dict.fromkeys((BASELINE, *names))]


def lengths(name: str, numbers: Sequence[int]) -> list[ClickArm]:
    """An arm for each number of behaviours; more than 50 are searched for the 50 most similar first."""
    if not numbers or min(numbers) < 1:
        raise InputError(f"lengths = {list(numbers)} must be whole numbers from 1", action="give e.g. 1,5,20,100")
    return [ClickArm(f"{n} behaviours", name, {"behaviors": n, "top_k": 50 if n > 50 else 0}) for n in sorted(set(numbers))]


def later(arms: Sequence[ClickArm]) -> list[ClickArm]:
    """Each arm, and beside it the same on rows after the encoder's training alone, and on rows of as long a time before its end."""
    names: dict[Learned, str] = {"all": "", "later": ", rows after the encoder's training", "before": ", as long before its end"}
    return [replace(arm, name=arm.name + more, learned=learned) for arm in arms for learned, more in names.items()]


def cube_parts() -> list[ClickArm]:
    """DIN with more and more of the query, CUBE, both with the place in the list known in training, and CUBE without each part."""
    plain = [ClickArm(name, name) for name in (BASELINE, "ctr-din-cos", "ctr-din-query", *AWARE, "ctr-cube")]
    placed = [ClickArm(f"{name} + position", name, {"position": True}) for name in (BASELINE, *AWARE[:-1], "ctr-cube")]
    return [*plain, *placed, *(ClickArm(f"ctr-cube − {part}", "ctr-cube", {"without": (part,)}) for part in PARTS)]


def days(names: Sequence[str], every: int) -> list[ClickArm]:
    """Each recipe trained once, once and refitted, and anew (and refitted) every so many days."""
    refit, named = {"refit": True}, ", daily" if every == 1 else f", every {every} days"
    kinds: dict[str, dict[str, Any]] = {"": {}, ", refit": {"change": refit}, named: {"change": refit, "every": every}}
    return [ClickArm(name + more, name, **given) for name in names for more, given in kinds.items()]
