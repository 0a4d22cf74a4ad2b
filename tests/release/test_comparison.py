"""Candidate against champion: which parts are compared, how wide the intervals of many slices are, and that few queries decide nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moon_ops.ctr.metrics import detected
from moon_ops.inputs.contract import Sample
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, ctr, recall
from moon_ops.release.comparison import Measured, differences
from moon_ops.release.recall import Queries, RecallReport

NEW_PICTURES, NEW_TEXTS = (recall(search, where="new_items") for search in (IMAGE_SEARCH, TEXT_SEARCH))


def searched(found: Any, *, pictures: int, new: int) -> Measured:
    """Queries of which ``found`` says who found its item; the first are photographs, and of each kind the first are of new items."""
    count = len(found)
    is_image = np.arange(count) < pictures
    is_new = (np.arange(count) < new) | ((np.arange(count) >= pictures) & (np.arange(count) < pictures + new))
    ids = np.arange(count)
    queries = Queries(ids, [Sample("q")] * count, ids, ids, is_new, is_image)
    return Measured({}, RecallReport({}, queries, np.where(found, 1, 11)))


def clicked(scores: Any, labels: Any, users: Any, **slices: Any) -> Measured:
    scored: Any = SimpleNamespace(rows=_Rows(labels, users), scores=scores, slices=slices)
    return Measured({ctr("auc"): 0.5, **{ctr("auc", name): 0.5 for name in slices}}, None, scored)


class _Rows:
    """The two columns of impressions that a comparison reads."""

    def __init__(self, labels: Any, users: Any) -> None:
        self.labels, self.user_ids = labels, users

    def __len__(self) -> int:
        return len(self.labels)


def test_all_queries_come_first_and_then_the_slices() -> None:
    found = np.ones(400, bool)
    assert list(differences(searched(found, pictures=200, new=50), searched(found, pictures=200, new=50))) == [
        recall(IMAGE_SEARCH), NEW_PICTURES, recall(TEXT_SEARCH), NEW_TEXTS,
    ]  # fmt: skip
    assert list(differences(searched(found, pictures=0, new=0), searched(found, pictures=0, new=0))) == [recall(TEXT_SEARCH)]
    assert differences(searched(found, pictures=0, new=0), None) == {}


def test_a_loss_among_new_items_alone_shows_there() -> None:
    before, after = np.ones(400, bool), np.ones(400, bool)
    after[:30] = False  # of 60 photographs of new items
    gaps = differences(searched(after, pictures=200, new=60), searched(before, pictures=200, new=60))
    assert gaps[NEW_PICTURES].value == -0.5
    assert -0.8 < gaps[NEW_PICTURES].low < gaps[NEW_PICTURES].high < -0.25
    assert (gaps[NEW_TEXTS].low, gaps[NEW_TEXTS].high) == (0.0, 0.0)


def test_the_interval_of_one_of_three_slices_is_wider_than_that_of_all() -> None:
    """The same 200 gaps, of standard deviation .3 / √200 = .0212: 1.96 of it for all photographs, 2.39 for one of three slices."""
    after = np.ones(400, bool)
    after[:10], after[200:210] = False, False
    before = np.ones(400, bool)
    before[10:18], before[210:218] = False, False
    gaps = differences(searched(after, pictures=200, new=200), searched(before, pictures=200, new=200))
    whole, part = gaps[recall(IMAGE_SEARCH)], gaps[recall(TEXT_SEARCH)]
    assert whole.value == part.value == -0.01
    assert whole.high - whole.low == pytest.approx(2 * 1.96 * 0.0212, rel=0.08)
    assert part.high - part.low == pytest.approx(2 * 2.394 * 0.0212, rel=0.08)
    assert part.detectable / whole.detectable == pytest.approx(detected(1 - 0.05 / 3) / detected(0.95), rel=0.02)


def test_three_queries_that_are_all_lost_decide_nothing() -> None:
    before, after = np.ones(203, bool), np.ones(203, bool)
    after[:3] = False
    gap = differences(searched(after, pictures=100, new=3), searched(before, pictures=100, new=3))[NEW_PICTURES]
    assert (gap.value, gap.low, gap.high) == (-1.0, -1.0, pytest.approx(0.7863, abs=1e-3))  # √(2 ln(2 / (.05 / 3)) / 3) − 1


def test_slices_of_impressions_are_compared_where_both_have_a_figure() -> None:
    rng = np.random.default_rng(0)
    labels, users = rng.integers(0, 2, 4000), rng.integers(0, 400, 4000)
    tail = np.arange(4000) < 1500
    good = labels + rng.standard_normal(4000)
    worse = np.where(tail, rng.standard_normal(4000), good)
    old, new = (clicked(s, labels, users, long_tail=tail, category_hats=tail) for s in (good, worse))
    gaps = differences(new, old)
    assert list(gaps) == [ctr("auc"), ctr("auc", "long_tail")], "a category is no slice that a release is judged by"
    assert gaps[ctr("auc", "long_tail")].high < -0.15
    other = clicked(good, 1 - labels, users, long_tail=tail)
    assert differences(new, other) == {}, "not the same impressions"
    without = Measured({ctr("auc"): 0.5}, None, old.clicks)
    assert list(differences(new, without)) == [ctr("auc")]
