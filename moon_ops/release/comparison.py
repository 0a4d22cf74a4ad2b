"""How much better a candidate is than the champion on the same queries and the same impressions, and what these data could have shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moon_ops.ctr.evaluate import Scored
from moon_ops.ctr.metrics import Difference, auc_difference
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, against_champion, ctr, recall
from moon_ops.release.recall import RecallReport

K, DRAWS, DETECTED = 10, 2000, 2.8  # DETECTED standard errors are found at 95 % with a chance of 80 %


@dataclass(frozen=True)
class Measured:
    """A release's figures by name, and what they were counted from, where it was kept."""

    metrics: dict[str, float]
    searches: RecallReport | None = None
    clicks: Scored | None = None


def differences(candidate: Measured, champion: Measured | None) -> dict[str, Difference]:
    """Candidate minus champion with a 95 % interval: recall@10 of picture and of text queries, and AUC; of what both were measured on."""
    found: dict[str, Difference] = {}
    if champion is None:
        return found
    if candidate.searches is not None and champion.searches is not None:
        for search, by_picture in ((IMAGE_SEARCH, True), (TEXT_SEARCH, False)):
            gap = recall_difference(candidate.searches, champion.searches, by_picture=by_picture)
            found |= {recall(search): gap} if gap is not None else {}
    left, right = candidate.clicks, champion.clicks
    if left is not None and right is not None and np.array_equal(left.rows.labels, right.rows.labels):
        found[ctr("auc")] = auc_difference(left.rows.labels, [left.scores], [right.scores], left.rows.user_ids, seed=0)
    return found


def recall_difference(candidate: RecallReport, champion: RecallReport, *, by_picture: bool, seed: int = 0) -> Difference | None:
    """Recall@10 of the queries that both were asked; None if there are none. Queries are drawn again, each with both its answers."""
    both, left, right = np.intersect1d(candidate.queries.query_ids, champion.queries.query_ids, return_indices=True)
    chosen = candidate.queries.is_image[left] == by_picture
    gaps = (candidate.ranks[left] <= K).astype(float)[chosen] - (champion.ranks[right] <= K).astype(float)[chosen]
    if not len(both) or not len(gaps):
        return None
    generator = np.random.default_rng(seed)
    means = np.array([gaps[generator.integers(len(gaps), size=len(gaps))].mean() for _ in range(DRAWS)])
    low, high = np.percentile(means, [2.5, 97.5])
    error = max(float(means.std()), 1 / (2 * len(gaps)))  # all alike: half a query more or less would not have been seen
    return Difference(float(gaps.mean()), float(low), float(high), DETECTED * error)


def as_numbers(found: Mapping[str, Difference]) -> dict[str, float]:
    """The differences as figures of the evidence."""
    out: dict[str, float] = {}
    for name, gap in found.items():
        out |= {against_champion(name, end): value for end, value in (("", gap.value), ("_low", gap.low), ("_high", gap.high))}
    return out
