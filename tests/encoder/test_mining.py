"""Hard negatives against brute force, below a ceiling, and by inverted lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moon_ops.encoder import mining
from moon_ops.encoder.mining import Ceiling, mine


def unit(vectors: Any) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def brute(vectors: Any, categories: Any, product: Any, count: int) -> list[list[int]]:
    out = []
    for row in range(len(vectors)):
        others = [o for o in range(len(vectors)) if categories[o] == categories[row] >= 0 and product[o] != product[row]]
        others.sort(key=lambda o: -float(vectors[row] @ vectors[o]))
        out.append((others + [-1] * count)[:count])
    return out


@pytest.mark.parametrize(("at_a_time", "spare"), [(4, 0), (1024, 32)])
def test_hard_negatives_are_those_that_brute_force_finds(at_a_time: int, spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many candidates are asked for at first."""
    monkeypatch.setattr(mining, "BLOCK", at_a_time)
    monkeypatch.setattr(mining, "SPARE", spare)
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(40, 6)))
    categories, product = rng.integers(-1, 4, 40), rng.integers(0, 15, 40)
    assert mine(vectors, categories, product, 3).tolist() == brute(vectors, categories, product, 3)


def test_hard_negatives_are_of_the_same_category_and_of_another_product() -> None:
    vectors = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [1, 0]], np.float32)
    categories, product = np.array([0, 0, 0, 0, 1]), np.array([7, 7, 8, 9, 10])  # the last one is alone in its category
    assert mine(vectors, categories, product, 3).tolist() == [[2, 3, -1], [2, 3, -1], [0, 1, 3], [2, 0, 1], [-1, -1, -1]]


def test_an_item_without_a_category_has_no_hard_negatives() -> None:
    vectors = np.ones((2, 2), np.float32)
    assert mine(vectors, np.array([-1, -1]), np.array([1, 2]), 2).tolist() == [[-1, -1], [-1, -1]]


def test_of_equally_similar_ones_the_first_are_taken() -> None:
    vectors = np.ones((20, 4), np.float32) / 2
    assert mine(vectors, np.zeros(20, np.int64), np.arange(20), 3).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3]] + [[0, 1, 2]] * 17


def test_what_is_as_near_to_the_queries_as_their_own_item_is_passed_over() -> None:
    vectors = unit(np.array([[1, 0, 0], [1, 0.1, 0], [1, 0.6, 0], [1, 0, 0.6], [0, 1, 1]]))
    asked = np.zeros((5, 3), np.float32)
    asked[0] = [0.8, 0.2, 0]  # nearer to the second and the third than to its own item
    categories, product = np.zeros(5, np.int64), np.arange(5)
    assert mine(vectors, categories, product, 2).tolist()[:2] == [[1, 2], [0, 2]]
    found = mine(vectors, categories, product, 2, Ceiling(asked, 0.95)).tolist()
    assert found[0] == [3, 4], "the next ones take their places"
    assert found[1] == [0, 2], "nobody asked for the second: it has no ceiling"


def test_a_row_whose_candidates_are_all_passed_over_is_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "SPARE", 1)
    angle = np.linspace(0, 1, 90)
    vectors = unit(np.stack([np.cos(angle), np.sin(angle)], 1))
    product = np.where(np.arange(90) < 60, 7, np.arange(90))  # sixty of the ninety are one product
    assert mine(vectors, np.zeros(90, np.int64), product, 2)[0].tolist() == [60, 61]


def test_inverted_lists_find_nearly_all_that_a_comparison_with_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 16))
    vectors = unit(centres[rng.integers(0, 60, 4000)] + 0.5 * rng.normal(size=(4000, 16)))
    categories, product = np.zeros(4000, np.int64), rng.integers(0, 3000, 4000)
    every = mine(vectors, categories, product, 5)
    monkeypatch.setattr(mining, "EXACT", 1000)
    monkeypatch.setattr(mining, "PROBES", 48)
    found = mine(vectors, categories, product, 5)
    assert (found >= 0).all()
    assert (product[found] != product[:, None]).all()
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), every.tolist(), strict=True)]) > 0.95
