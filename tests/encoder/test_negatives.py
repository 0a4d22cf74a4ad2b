"""Hard negatives against brute force, and the queue of earlier items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moon_ops.encoder import negatives
from moon_ops.encoder.negatives import Queue, mine


def brute(vectors: Any, categories: Any, product: Any, count: int) -> list[list[int]]:
    out = []
    for row in range(len(vectors)):
        others = [o for o in range(len(vectors)) if categories[o] == categories[row] >= 0 and product[o] != product[row]]
        others.sort(key=lambda o: -float(vectors[row] @ vectors[o]))
        out.append((others + [-1] * count)[:count])
    return out


@pytest.mark.parametrize("at_a_time", [4, 1024])
def test_hard_negatives_are_those_that_brute_force_finds(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "MINE_BATCH", at_a_time)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    categories, product = rng.integers(-1, 4, 40), rng.integers(0, 15, 40)
    assert mine(vectors, categories, product, 3).tolist() == brute(vectors, categories, product, 3)


def test_hard_negatives_are_of_the_same_category_and_of_another_product() -> None:
    vectors = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [1, 0]], np.float32)
    categories, product = np.array([0, 0, 0, 0, 1]), np.array([7, 7, 8, 9, 10])  # the last one is alone in its category
    assert mine(vectors, categories, product, 3).tolist() == [[2, 3, -1], [2, 3, -1], [0, 1, 3], [2, 0, 1], [-1, -1, -1]]


def test_an_item_without_a_category_has_no_hard_negatives() -> None:
    vectors = np.ones((2, 2), np.float32)
    assert mine(vectors, np.array([-1, -1]), np.array([1, 2]), 2).tolist() == [[-1, -1], [-1, -1]]


def rows(*numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[float(n), -float(n)] for n in numbers]), torch.tensor(numbers)


def test_the_queue_holds_the_newest_in_order_and_lets_the_oldest_fall_out() -> None:
    queue = Queue(3, 2)
    queue.push(*rows(1, 2))
    assert queue.product.tolist() == [1, 2]
    queue.push(*rows(3, 4))
    assert queue.product.tolist() == [2, 3, 4]
    assert queue.vectors.tolist() == [[2, -2], [3, -3], [4, -4]]
    queue.push(*rows(5, 6, 7, 8))
    assert queue.product.tolist() == [6, 7, 8]


def test_the_queue_holds_no_gradient() -> None:
    queue = Queue(4, 2)
    queue.push(torch.ones(2, 2, requires_grad=True) * 2, torch.tensor([0, 1]))
    assert not queue.vectors.requires_grad


def test_a_queue_goes_on_from_its_state() -> None:
    first, second = Queue(3, 2), Queue(3, 2)
    first.push(*rows(1, 2))
    second.restore(first.state())
    for queue in (first, second):
        queue.push(*rows(3, 4))
    assert torch.equal(first.vectors, second.vectors)
    assert second.product.tolist() == [2, 3, 4]


def test_the_largest_are_those_of_a_whole_stable_sort() -> None:
    values = np.random.default_rng(0).integers(0, 4, (50, 30)).astype(np.float32)
    values[::7, 3:] = -np.inf  # fewer than asked for
    for count in (1, 4, 30, 40):
        assert (negatives._largest(values, count) == np.argsort(-values, axis=1, kind="stable")[:, :count]).all()
