"""The queue of earlier items."""

from __future__ import annotations

import torch

from moon_ops.encoder.negatives import Queue


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
