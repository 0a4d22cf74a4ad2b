"""What a part of the machine takes by the size of a shop: ``models/costs.toml``, straight lines through what was measured."""

from __future__ import annotations

import math
from dataclasses import fields

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from moon_ops.shapes import rule

STRICT = ConfigDict(extra="forbid")
MILLION = 1e6
Line = tuple[float, float, float]


@checked(frozen=True, config=STRICT)
class Cost:
    """Each a fixed amount, so much for a million items, and so much for a million events: CPU-seconds, MiB of memory, MiB on disk."""

    seconds: Line
    memory: Line
    disk: Line = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            line = getattr(self, field.name)
            rule(all(0 <= one < math.inf for one in line), f"costs.{field.name}", list(line), "three numbers of 0 or more")

    def of(self, what: str, items: float, events: float) -> float:
        """``seconds``, ``memory`` or ``disk`` of a shop of so many items and events."""
        fixed, an_item, an_event = getattr(self, what)
        return float(fixed + an_item * items / MILLION + an_event * events / MILLION)


@checked(frozen=True, config=STRICT)
class Costs:
    """The parts that were measured, and where. ``click_rows``: rows a second that a click model is trained on by one core. ``redis``: bytes
    of an item in Redis, beside its vector.
    """

    name: str
    processor: str
    ingest: Cost
    derive: Cost
    night: Cost
    increment: Cost
    publish: Cost
    index: Cost
    click_rows: float
    redis: float

    def __post_init__(self) -> None:
        for name in ("click_rows", "redis"):
            rule(getattr(self, name) > 0, f"costs.{name}", getattr(self, name), "above 0")
