"""The gates of a release: how good it must be, how much worse than the champion it may be, and what it may cost."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from moon_ops.shapes import rule

SHARES = (
    *("recall_floor", "auc_floor", "recall_tolerance", "auc_tolerance", "parity_floor", "slice_tolerance", "variant_loss_ceiling"),
    *("coverage_floor", "broken_ceiling", "norm_tolerance", "pair_cosine_ceiling"),
)


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Gates:
    """What a release must reach: floors for the first one, and how far below the champion a later one may fall.

    Those with a default came later; a shop's older file goes on as it is. A ratio or a ceiling of 0 sets no limit.
    """

    name: str
    recall_floor: float
    auc_floor: float
    recall_tolerance: float
    auc_tolerance: float
    parity_floor: float  # least cosine between eager and exported vectors
    slice_tolerance: float = 0.01  # recall or AUC of a part of the queries or impressions; failed only if surely lost
    variant_loss_ceiling: float = 0.01  # recall@10 that the variant which the settings serve may lose, by its certificate
    latency_ratio: float = 2.0  # of the champion's milliseconds
    latency_slack_ms: float = 5.0  # less than this more is noise on a busy machine
    latency_ceiling_ms: float = 0.0  # whatever the champion takes
    size_ratio: float = 2.0  # of the champion's bytes
    size_ceiling_mb: float = 0.0  # of models and index together, in millions of bytes
    coverage_floor: float = 0.99  # share of the items on sale with a vector, in the index, and in the table
    lag_ceiling_hours: float = 48.0  # of the newest vector behind the newest item version
    broken_ceiling: float = 0.0  # share of vectors that are zero or no number
    norm_tolerance: float = 0.01  # of the worst vector's length from 1
    pair_cosine_ceiling: float = 0.95  # mean over pairs of items: above it, all items look alike
    effective_rank_floor: float = 2.0  # directions that the vectors use
    categories_psi_ceiling: float = 0.25  # shift of what is asked for; a warning
    second_person: bool = False  # whether somebody else must approve a promotion by the DAG moon_promote

    def __post_init__(self) -> None:
        for name in SHARES:
            rule(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name in ("latency_ratio", "size_ratio"):
            ratio = getattr(self, name)
            rule(ratio == 0 or 1 <= ratio < float("inf"), name, ratio, "at least 1, or 0 for no limit")
        for name in ("latency_slack_ms", "latency_ceiling_ms", "size_ceiling_mb", "lag_ceiling_hours", "categories_psi_ceiling"):
            rule(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "0 or more, and finite")
        rule(1 <= self.effective_rank_floor < float("inf"), "effective_rank_floor", self.effective_rank_floor, "at least 1, and finite")
