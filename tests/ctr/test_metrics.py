"""The fast metrics against the obvious ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.ctr import metrics
from moon_ops.ctr.metrics import Difference


def drawn(rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Labels, scores with many ties, and users of very different size."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    scores = np.round(0.3 * labels + generator.random(rows), 1)
    return labels, scores, generator.geometric(0.3, rows) * 7


def pairs_won(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """AUC as it is defined: of all pairs of a click and a non-click, those in the right order; a tie is half a pair."""
    won = [(c > n) + 0.5 * (c == n) for c in scores[labels == 1] for n in scores[labels == 0]]
    return float(np.mean(won))


def gauc_by_loop(labels: NDArray[np.int64], scores: NDArray[np.float64], users: NDArray[np.int64]) -> float:
    parts = []
    for user in set(users.tolist()):
        own = users == user
        if len(set(labels[own].tolist())) == 2:
            parts.append((pairs_won(labels[own], scores[own]), own.sum()))
    return sum(a * n for a, n in parts) / sum(n for _, n in parts)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    labels, scores, _ = drawn(80, seed)
    assert metrics.auc(labels, scores) == pytest.approx(pairs_won(labels, scores))


@pytest.mark.parametrize("seed", range(5))
def test_gauc_is_what_a_plain_loop_over_users_gives(seed: int) -> None:
    labels, scores, users = drawn(120, seed)
    assert sum(len(set(labels[users == u].tolist())) < 2 for u in set(users.tolist())) > 0, "some users have one class only"
    assert metrics.gauc(labels, scores, users) == pytest.approx(gauc_by_loop(labels, scores, users))


def test_gauc_by_hand() -> None:
    """User 1: two of two pairs, 3 rows. User 2: none of one pair, 2 rows. User 3 clicked everything."""
    labels = np.array([1, 0, 0, 0, 1, 1])
    scores = np.array([0.9, 0.5, 0.1, 0.8, 0.2, 0.7])
    users = np.array([1, 1, 1, 2, 2, 3])
    assert metrics.gauc(labels, scores, users) == pytest.approx((1.0 * 3 + 0.0 * 2) / 5)


def test_one_class_has_no_auc() -> None:
    ones, scores = np.ones(3, np.int64), np.array([0.1, 0.2, 0.3])
    assert math.isnan(metrics.auc(ones, scores))
    assert math.isnan(metrics.gauc(ones, scores, np.array([1, 1, 2])))
    assert math.isnan(metrics.gauc(ones[:0], scores[:0], ones[:0]))


def test_report_names_models_and_slices() -> None:
    labels, scores, users = drawn(400, 0)
    some = np.arange(400) < 250
    found = metrics.report(labels, scores, users, {"new_items": some}, "_id_only")
    assert set(found) == {f"ctr/{m}_id_only{s}" for m in ("auc", "gauc", "logloss", "calibration") for s in ("", ":new_items")}
    assert found["ctr/auc_id_only"] == metrics.auc(labels, scores)
    assert found["ctr/auc_id_only:new_items"] == metrics.auc(labels[some], scores[some])
    assert found["ctr/gauc_id_only:new_items"] == metrics.gauc(labels[some], scores[some], users[some])


def test_log_loss_by_hand_and_never_infinite() -> None:
    labels, users = np.array([1, 0, 1, 0]), np.zeros(4, np.int64)
    scores = np.array([0.8, 0.25, 0.5, 0.5])
    expected = -(math.log(0.8) + math.log(0.75) + 2 * math.log(0.5)) / 4
    assert metrics.report(labels, scores, users, {})["ctr/logloss"] == pytest.approx(expected)
    certain = metrics.report(labels, np.array([0.0, 1.0, 1.0, 0.0]), users, {})["ctr/logloss"]
    assert certain == pytest.approx(-2 * math.log(1e-7) / 4, rel=1e-3)


def test_a_slice_with_too_few_of_a_class_is_left_out() -> None:
    labels = np.array([1] * (metrics.LEAST + 1) + [0] * 300)
    scores, users = np.linspace(1, 0, len(labels)), np.zeros(len(labels), np.int64)
    enough, too_few = np.arange(len(labels)) >= 1, np.arange(len(labels)) >= 2
    found = metrics.report(labels, scores, users, {"enough": enough, "too_few": too_few})
    assert {name.partition(":")[2] for name in found} == {"", "enough"}


def test_the_difference_of_a_model_with_itself_is_nothing() -> None:
    labels, scores, users = drawn(300, 0)
    assert metrics.auc_difference(labels, [scores], [scores], users, seed=0, draws=20) == Difference(0.0, 0.0, 0.0, 0.0)


def test_the_difference_has_an_interval_that_holds_it() -> None:
    labels, scores, users = drawn(600, 1)
    noise = np.random.default_rng(2).random(600)
    found = metrics.auc_difference(labels, [scores], [noise], users, seed=0, draws=60)
    assert found.value == pytest.approx(metrics.auc(labels, scores) - metrics.auc(labels, noise))
    assert 0 < found.low < found.value < found.high < 0.5
    assert found == metrics.auc_difference(labels, [scores], [noise], users, seed=0, draws=60)
    other = metrics.auc_difference(labels, [noise], [scores], users, seed=0, draws=60)
    assert (other.value, other.low, other.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert (found.verdict, other.verdict) == ("better", "worse")


def test_every_draw_is_the_auc_of_its_users_ties_and_all() -> None:
    """A user drawn twice counts as if the user's rows were there twice."""
    labels, _, users = drawn(200, 4)
    scores = np.random.default_rng(5).integers(0, 12, 200) / 12
    known, place = np.unique(users, return_inverse=True)
    model = metrics._sorted(labels, scores, place)
    for draw in np.random.default_rng(6).multinomial(len(known), np.full(len(known), 1 / len(known)), 5):
        rows = np.repeat(np.arange(200), draw[place])
        assert metrics._weighted(model, draw.astype(np.float64)) == pytest.approx(metrics.auc(labels[rows], scores[rows]))


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_differ_by_chance_are_seldom_called_better(seeds: int) -> None:
    """Two arms whose models are drawn from one lot, far apart: 5 % may seem different, and a few more by the chance of this test."""
    generator = np.random.default_rng(8)
    labels, users = generator.integers(0, 2, 400), np.arange(400)
    called = 0
    for _ in range(120):
        left, right = ([labels * generator.normal(0.6, 0.4) + generator.normal(size=400) for _ in range(seeds)] for _ in range(2))
        called += metrics.auc_difference(labels, left, right, users, seed=0, draws=40).verdict in ("better", "worse")
    assert called <= 15


def test_no_difference_is_told_from_too_little_data() -> None:
    """The same noise on many users and on few: only many can exclude a difference that matters."""
    generator = np.random.default_rng(7)
    verdicts = []
    for count in (200, 200_000):
        labels, users = generator.integers(0, 2, count), generator.integers(0, count // 4, count)
        base = labels + generator.normal(size=count)
        left, right = (base + generator.normal(size=count) * 0.1 for _ in range(2))
        verdicts.append(metrics.auc_difference(labels, [left], [right], users, seed=0, draws=100).verdict)
    assert verdicts == ["too little data", "no difference"]


def test_the_mean_over_seeds_is_compared() -> None:
    labels, scores, users = drawn(600, 1)
    noise = [np.random.default_rng(seed).random(600) for seed in (2, 3)]
    found = metrics.auc_difference(labels, [scores, scores], noise, users, seed=0, draws=60)
    assert found.value == pytest.approx(metrics.auc(labels, scores) - np.mean([metrics.auc(labels, n) for n in noise]))


def test_a_gain_on_one_user_alone_is_not_certain() -> None:
    """The bootstrap draws users, not rows: what one user shows is one observation."""
    labels = np.array([1, 0] * 60)
    users = np.repeat([1, 2], 60)
    better = np.where(users == 1, labels, 0.5)
    found = metrics.auc_difference(labels, [better], [np.full(120, 0.5)], users, seed=0, draws=60)
    assert found.value == pytest.approx(0.875 - 0.5)  # of pairs (click, non-click) three quarters are right, and the rest are ties
    assert found.low == 0.0


def test_the_expected_auc_counts_each_row_as_a_click_and_as_none() -> None:
    """By its chance; certain labels give the AUC itself."""
    chances, scores = np.array([0.9, 0.2, 0.5]), np.array([0.3, 0.1, 0.2])
    above = pairs = 0.0
    for (i, p), (j, q) in itertools.product(enumerate(chances), repeat=2):
        above += p * (1 - q) * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
        pairs += p * (1 - q)
    assert metrics.expected_auc(chances, scores) == pytest.approx(above / pairs)
    assert metrics.expected_auc(np.array([1.0, 0.0, 1.0]), scores) == metrics.auc(np.array([1, 0, 1]), scores) == 1.0
    assert np.isnan(metrics.expected_auc(np.array([np.nan, 0.5, 0.5]), scores))
