"""How much of one visitor counts: caps against bots and floods, which recipes set; and how late a click's impression may be logged."""

from __future__ import annotations

from dataclasses import field

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from moon_ops.shapes import rule

STRICT = ConfigDict(extra="forbid")
SKEW = 5.0  # seconds between two clocks of a shop, as they are


@checked(frozen=True, config=STRICT)
class Caps:
    """Events of one kind that count on one day (UTC), the first ones; 0 sets no cap.

    A visitor is a user, or a session in which no user is named. Events with neither are nobody's: they are no visitor together.
    """

    visitor: int = 500  # clicks of one visitor; so many carts, and so many purchases
    visitor_item: int = 20  # of these on one item
    nobody_item: int = 1000  # on one item, of visitors that are not told apart
    impressions: int = 10  # of impressions so many times as many count

    def __post_init__(self) -> None:
        for name in ("visitor", "visitor_item", "nobody_item"):
            rule(getattr(self, name) >= 0, f"caps.{name}", getattr(self, name), "0 (no cap) or more")
        rule(self.impressions >= 1, "caps.impressions", self.impressions, "at least 1")


@checked(frozen=True, config=STRICT)
class Most:
    """Pairs of an encoder, or rows of a click model, that one visitor, item or query may give, over all days; 0 sets no cap."""

    visitor: int = 0
    item: int = 0
    query: int = 0

    def __post_init__(self) -> None:
        for name in ("visitor", "item", "query"):
            rule(getattr(self, name) >= 0, f"most.{name}", getattr(self, name), "0 (no cap) or more")


@checked(frozen=True, config=STRICT)
class Counting:
    """What counts for statistics and sequences, and where click models are judged: ``models/counting.toml``."""

    name: str
    caps: Caps = field(default_factory=Caps)
