"""Releases made by hand, and what the aliases and the record of moves say of them."""

from __future__ import annotations

from collections.abc import Callable

from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, PREVIOUS, Registry
from moon_ops.release import promotion

Make = Callable[..., int]
WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
FAILED = {
    "gate": "image_search/recall@10",
    "value": 0.3,
    "threshold": 0.4,
    "rule": "at least the floor 0.4",
    "champion": None,
    "passed": False,
}


def aliases(registry: Registry) -> dict[str, int | None]:
    return {name: registry.alias(name) for name in (CHAMPION, PREVIOUS)}


def said(registry: Registry) -> list[tuple[str, int | None, int]]:
    """The record: what was done, and which release took the place of which."""
    return [(move.kind, move.before, move.release) for move in moves(registry)]
