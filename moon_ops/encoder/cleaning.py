"""Cleaning the pairs of stage 2b (arXiv 2511.11305): four steps, each a pure function on arrays that a caller may leave out.

P pairs; a pair is a query's row and a bought item's row, as in :class:`moon_ops.encoder.pairs.Pairs`. The paper names the steps and not
their order. A good order is that of :class:`CleaningReport`: balancing comes last, since dropping pairs afterwards would undo the mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moon_ops.encoder.entities import Recognizer
from moon_ops.errors import StageError


@dataclass(frozen=True)
class CleaningReport:
    """How many pairs there were before cleaning and after each step; a step left out repeats the number before it."""

    before: int
    spu_groups: int  # bought SPUs; equal to the bought items where SKUs were not merged
    after_least_similar: int
    after_mentions: int
    after_balance: int


def merge_spu(item: NDArray[np.int64], spu_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group [P] of each pair, numbered from 0 in the order of SPU ids: pairs of one SPU's SKUs have the same.

    ``item`` [P] are rows of ``spu_ids`` [I]. Pairs of one group are not each other's negatives, and :func:`least_similar` may be given
    the groups in place of the items.
    """
    if len(item) and item.min() < 0:
        raise IndexError(f"item row {item.min()} is before the first of {len(spu_ids)}")  # numpy would count it from the end
    return np.unique(spu_ids[item], return_inverse=True)[1].astype(np.int64)


def least_similar(query: NDArray[np.int64], item: NDArray[np.int64], similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    """The numbers of the pairs to keep, ascending: of each item's queries the one that the previous encoder finds least similar to it.

    ``query``, ``item`` and ``similarity`` are [P]; of equally similar pairs the first stays. Raises :class:`StageError` for a similarity
    that is not a number.
    """
    if not len(query) == len(item) == len(similarity):
        raise ValueError(f"{len(query)} queries, {len(item)} items and {len(similarity)} similarities are not of the same pairs")
    if np.isnan(similarity).any():
        raise StageError(
            f"{int(np.isnan(similarity).sum())} of {len(similarity)} similarities of the previous encoder are not numbers",
            action="train the stage before again, or clean without least_similar",
        )
    order = np.lexsort((similarity, item))  # stable: equal ones stay in the order of their numbers
    first = np.unique(item[order], return_index=True)[1]
    return np.sort(order[first]).astype(np.int64)


def mentions_enough(query_texts: Sequence[str], titles: Sequence[str], recognizer: Recognizer, least: int = 2) -> NDArray[np.bool_]:
    """Whether to keep each pair [P]: its query's text and its item's title both name at least ``least`` entities.

    A picture query has no text and is judged by the title alone.
    """
    counts = {text: recognizer.count(text) for text in {*query_texts, *titles} if text.strip()}
    kept = [
        counts.get(title, 0) >= least and (not text.strip() or counts[text] >= least)
        for text, title in zip(query_texts, titles, strict=True)
    ]
    return np.array(kept, np.bool_)


def balance(categories: NDArray[np.int64], exposed: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` pair numbers, ascending, whose categories are mixed like those of the exposed items.

    ``categories`` [P] are the pairs', ``exposed`` [E] those of the impressions, an item as often as it was shown. Exposed categories
    without pairs are left out and the others scaled up; pairs of categories that were never exposed are left out. The mix is exact to the
    rounding. Which pairs of a category are taken is drawn, and each is taken once before any is taken again. Raises :class:`StageError`
    if no category is left.
    """
    shown = exposed[np.isin(exposed, categories)]
    if not len(shown):
        raise StageError(
            f"none of {len(exposed)} exposed items is of a category that the {len(categories)} pairs have: there is no mix to follow",
            action="ingest the impressions of this shop, or clean without balance",
        )
    kinds, impressions = np.unique(shown, return_counts=True)
    chosen = [
        _repeated(np.flatnonzero(categories == kind), quota, generator)
        for kind, quota in zip(kinds, _quotas(impressions, count), strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _quotas(weights: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` shared out by ``weights``: whole parts first, the rest to the largest remainders, of equal ones to the first."""
    parts, remainders = np.divmod(weights * count, weights.sum())  # in whole numbers: no remainder is lost to rounding
    parts[np.argsort(-remainders, kind="stable")[: count - parts.sum()]] += 1
    return parts


def _repeated(rows: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` of ``rows``, shuffled; every one is used equally often, but for the last round."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate([rows[:0], *rounds])[:count]
