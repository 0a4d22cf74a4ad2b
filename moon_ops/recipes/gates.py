"""The gates of a release: how good it must be, and how much worse than the champion it may be."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from moon_ops.shapes import rule


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Gates:
    """What a release must reach: floors for the first one, and how far below the champion a later one may fall."""

    name: str
    recall_floor: float
    auc_floor: float
    recall_tolerance: float
    auc_tolerance: float
    parity_floor: float  # least cosine between eager and exported vectors
    second_person: bool = False  # whether somebody else must approve a promotion by the DAG moon_promote

    def __post_init__(self) -> None:
        for name in ("recall_floor", "auc_floor", "recall_tolerance", "auc_tolerance", "parity_floor"):
            rule(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
