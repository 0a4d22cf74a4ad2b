"""InfoNCE against the obvious loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from moon_ops.encoder.losses import info_nce


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow(query: torch.Tensor, item: torch.Tensor, target: list[int], scale: float, same: torch.Tensor) -> float:
    """Each direction written out: a product's own other items, and an item's own other queries, are no negatives."""
    total = 0.0
    for q, t in enumerate(target):
        own = math.exp(scale * float(query[q] @ item[t]))
        items = [math.exp(scale * float(query[q] @ item[m])) for m in range(len(item)) if m != t and not same[q, m]]
        queries = [math.exp(scale * float(query[p] @ item[t])) for p in range(len(query)) if not same[p, t]]
        total += -math.log(own / (own + sum(items))) - math.log(own / (own + sum(queries)))
    return total / (2 * len(target))


@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_equals_the_obvious_loop(scale: float) -> None:
    query, item, target = unit(6, 0), unit(4, 1), torch.tensor([0, 1, 1, 2, 3, 0])
    spu = torch.tensor([7, 8, 9, 8])  # items 1 and 3 are SKUs of one product
    same = spu[target][:, None] == spu[None, :]
    found = info_nce(query, item, target, torch.tensor(scale), same)
    assert float(found) == pytest.approx(slow(query, item, target.tolist(), scale, same), rel=1e-5)


def test_a_perfect_match_costs_nothing_and_a_wrong_one_a_lot() -> None:
    item = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    good = info_nce(item, item, torch.arange(4), torch.tensor(50.0), same)
    bad = info_nce(item.roll(1, 0), item, torch.arange(4), torch.tensor(50.0), same)
    assert float(good) == pytest.approx(0.0, abs=1e-6)
    assert float(bad) == pytest.approx(50.0, rel=1e-3)


def test_collapsed_vectors_cost_the_logarithm_of_the_batch() -> None:
    vectors = torch.ones(8, 3) / math.sqrt(3)
    loss = info_nce(vectors, vectors, torch.arange(8), torch.tensor(10.0), torch.eye(8, dtype=torch.bool))
    assert float(loss) == pytest.approx(math.log(8), rel=1e-5)
