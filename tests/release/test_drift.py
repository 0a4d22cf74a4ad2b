"""Drift: what makes a space useless, with values that are known by hand, and whether people ask for other things than before."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moon_ops.lake.lake import Lake
from moon_ops.metric_names import drift as named
from moon_ops.metric_names import space
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import drift
from moon_ops.release.windows import windows
from moon_ops.settings import Settings


def units(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_directions_at_right_angles_are_all_used() -> None:
    found = drift.of_space(np.tile(np.eye(8, dtype=np.float32), (3, 1)))
    assert found[space("effective_rank")] == pytest.approx(8)
    assert found[space("pair_cosine")] == pytest.approx(2 / 23)  # of the 23 others two are alike, the rest stand at right angles
    assert (found[space("broken")], found[space("norm_error")]) == (0.0, 0.0)


def test_a_space_in_which_all_items_look_alike_is_told() -> None:
    rng = np.random.default_rng(0)
    found = drift.of_space(units(np.ones(16) + 0.01 * rng.standard_normal((200, 16))))
    assert found[space("pair_cosine")] > 0.999
    assert found[space("effective_rank")] < 2
    spread = drift.of_space(units(rng.standard_normal((2000, 16))))
    assert abs(spread[space("pair_cosine")]) < 0.01
    assert 15 < spread[space("effective_rank")] <= 16


def test_a_collapse_into_two_directions_shows_in_the_rank_and_not_in_the_mean() -> None:
    angles = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    plane = np.zeros((100, 16))
    plane[:, 0], plane[:, 1] = np.cos(angles), np.sin(angles)
    found = drift.of_space(units(plane))
    assert found[space("pair_cosine")] == pytest.approx(-1 / 99, abs=1e-6)
    assert found[space("effective_rank")] == pytest.approx(2, abs=1e-3)


def test_vectors_that_are_none_are_counted_and_left_out_of_the_rest() -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[0], vectors[1, 0] = 0, np.nan
    vectors[2] *= 1.5
    found = drift.of_space(vectors)
    assert found[space("broken")] == 0.5
    assert found[space("norm_error")] == pytest.approx(0.5)
    assert drift.of_space(vectors[:2]) == {space("broken"): 1.0}
    assert drift.of_space(vectors[:0]) == {}


def test_the_stability_index_has_the_value_of_its_definition() -> None:
    """Half and half, then four fifths and one: .3 × ln(.8 / .5) + (−.3) × ln(.2 / .5)."""
    value, chance = drift.psi(np.array([50_000, 50_000]), np.array([80_000, 20_000]))
    assert value == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), abs=1e-4)
    assert chance == pytest.approx(3.8415 * 2e-5, rel=1e-3)
    assert drift.psi(np.array([7, 3]), np.array([7, 3]))[0] == 0.0


def test_chance_alone_exceeds_its_limit_in_one_of_twenty_cases() -> None:
    rng = np.random.default_rng(0)
    shares, above = np.array([0.4, 0.3, 0.2, 0.1]), 0
    for _ in range(1000):
        value, chance = drift.psi(rng.multinomial(300, shares), rng.multinomial(100, shares))
        above += value > chance
    assert 25 <= above <= 75


def test_the_share_of_photographs_is_that_of_the_queries_themselves(released: Settings) -> None:
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    found = drift.of_queries(released.lake, 1, times)
    asked = released.lake.read("queries", ["image_id", "event_timestamp"]).to_pylist()
    shares = []
    for start, end in ((times.start, times.trained_until), (times.trained_until, times.end)):
        part = [q["image_id"] is not None for q in asked if start <= q["event_timestamp"] < end]
        shares.append(sum(part) / len(part))
    assert found[named("picture_queries")] == pytest.approx(shares[1] - shares[0])
    assert 0 < found[named("queries_cosine")] <= 1 + 1e-6
    assert found[named("categories_psi")] > 0
    assert found[named("categories_psi_chance")] > 0


def test_a_shop_of_which_nothing_was_asked_has_no_such_figures(released: Settings, tmp_path: object) -> None:
    times = windows(released.lake, trained_until=encoder_version(released, 1).trained_until)
    assert drift.of_queries(Lake(str(tmp_path)), 1, times) == {}
