"""Losses against the obvious loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moon_ops.encoder import losses
from moon_ops.encoder.losses import circle, info_nce, nested, next_token


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
@pytest.mark.parametrize("items", [4, 9], ids=["targets alone", "further negatives"])
def test_info_nce_equals_the_obvious_loop(scale: float, items: int) -> None:
    query, item, target = unit(6, 0), unit(items, 1), torch.tensor([0, 1, 1, 2, 3, 0])
    spu = torch.tensor([7, 8, 9, 8, 1, 7, 2, 3, 9])[:items]  # items 1 and 3 are SKUs of one product, so are some further ones
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


def slow_circle(query: torch.Tensor, item: torch.Tensor, target: list[int], same: torch.Tensor, m: float, gamma: float) -> float:
    """Sun et al. (2020), equation 6, over γ: Op = 1 + m, On = -m, Δp = 1 - m, Δn = m."""
    total = 0.0
    for q, t in enumerate(target):
        sp = float(query[q] @ item[t])
        others = [float(query[q] @ item[j]) for j in range(len(item)) if j != t and not same[q, j]]
        negatives = sum(math.exp(gamma * max(sn + m, 0) * (sn - m)) for sn in others)
        total += math.log(1 + negatives * math.exp(-gamma * max(1 + m - sp, 0) * (sp - (1 - m))))
    return total / len(target) / gamma


@pytest.mark.parametrize(("margin", "scale"), [(0.25, 32.0), (0.4, 5.0), (0.0, 1.0)])
def test_circle_equals_the_formula_written_out(margin: float, scale: float) -> None:
    query, item, target = unit(5, 2), unit(8, 3), torch.tensor([0, 1, 2, 3, 4])
    spu = torch.tensor([1, 2, 1, 3, 4, 2, 5, 6])
    same = spu[target][:, None] == spu[None, :]
    found = circle(query, item, target, same, margin=margin, scale=scale)
    assert float(found) == pytest.approx(slow_circle(query, item, target.tolist(), same, margin, scale), rel=1e-5)


def test_circle_both_ways_is_the_mean_of_each_way() -> None:
    query, item = unit(4, 5), unit(7, 6)
    target, same = torch.tensor([0, 2, 4, 6]), torch.zeros(4, 7, dtype=torch.bool)
    same[0, 2] = True
    there = circle(query, item, target, same, margin=0.25, scale=32.0)
    back = circle(item[target], query, torch.arange(4), same[:, target].T, margin=0.25, scale=32.0)
    assert float(there) != pytest.approx(float(back), rel=1e-3)
    both = circle(query, item, target, same, margin=0.25, scale=32.0, both_ways=True)
    assert float(both) == pytest.approx(float(there + back) / 2, rel=1e-5)


def test_circle_pulls_each_similarity_by_how_far_it_is_from_its_optimum() -> None:
    """One query with one positive (0.6) and two negatives (0.3 and -0.5); the weights are constants when the gradient is taken."""
    margin, scale = 0.25, 8.0
    similarity = torch.tensor([0.6, 0.3, -0.5], requires_grad=True)  # the items' only numbers; the query is 1
    loss = circle(
        torch.ones(1, 1), similarity[:, None], torch.tensor([0]), torch.tensor([[True, False, False]]), margin=margin, scale=scale
    )
    (gradient,) = torch.autograd.grad(loss, similarity)
    pull, push = 1 + margin - 0.6, 0.3 + margin  # 0.65 and 0.55; below -margin a negative is let be
    logit = scale * (push * (0.3 - margin)) - scale * pull * (0.6 - (1 - margin))
    far = math.log(math.exp(scale * push * (0.3 - margin)) + 1) - scale * pull * (0.6 - (1 - margin))  # the far one counts e^0
    share = math.exp(logit) / (math.exp(far) + 1)
    assert gradient[0].item() == pytest.approx(-pull * math.exp(far) / (1 + math.exp(far)), rel=1e-5)
    assert gradient[1].item() == pytest.approx(push * share, rel=1e-5)
    assert gradient[2].item() == 0.0


def test_circle_without_a_negative_costs_nothing_and_its_gradient_is_a_number() -> None:
    query = unit(2, 0).requires_grad_()
    loss = circle(query, unit(2, 1), torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool), margin=0.25, scale=32.0)
    loss.backward()
    assert loss.item() == 0.0
    assert query.grad is not None
    assert query.grad.abs().sum() == 0


def test_nested_is_the_mean_over_the_prefixes_and_the_whole_normalised_anew() -> None:
    query, item, target, same = unit(4, 4), unit(4, 5), torch.arange(4), torch.eye(4, dtype=torch.bool)

    def loss(q: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return info_nce(q, i, target, torch.tensor(9.0), same)

    parts = [slow(F.normalize(query[:, :n], dim=1), F.normalize(item[:, :n], dim=1), [0, 1, 2, 3], 9.0, same) for n in (2, 3, 5)]
    assert float(nested(loss, query, item, (2, 3))) == pytest.approx(sum(parts) / 3, rel=1e-5)
    assert float(nested(loss, query, item, (2, 3, 5, 8))) == pytest.approx(sum(parts) / 3, rel=1e-5)  # no longer than the whole, it once
    assert float(nested(loss, query, item, ())) == pytest.approx(parts[2], rel=1e-5)


def test_next_token_is_the_mean_surprise_at_marked_tokens_alone() -> None:
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    ids, marked = torch.tensor([[1, 2, 3, 4], [5, 0, 1, 2]]), torch.tensor([[False, False, True, True], [True, True, False, False]])
    probability = logits.softmax(-1)
    seen = [probability[0, 1, 3], probability[0, 2, 4], probability[1, 0, 0]]  # nothing comes before the first token of the second row
    assert float(next_token(logits, ids, marked)) == pytest.approx(-sum(math.log(p) for p in seen) / 3, rel=1e-5)


def test_next_token_of_rows_without_a_target_is_nothing_rather_than_no_number() -> None:
    logits = torch.randn(2, 4, 6).requires_grad_()
    loss = next_token(logits, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool))
    assert loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize("tile", [1, 7, 40])
@pytest.mark.parametrize("kind", ["info_nce", "circle"])
def test_pieces_have_the_loss_and_the_gradients_of_the_whole(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, same = torch.tensor([3, 0, 7, 1, 8]), torch.rand(5, 9, generator=torch.Generator().manual_seed(2)) < 0.3

    def found() -> tuple[torch.Tensor, ...]:
        query, item, scale = unit(5, 0).requires_grad_(), unit(9, 1).requires_grad_(), torch.tensor(9.0, requires_grad=True)
        if kind == "circle":
            loss = circle(query, item, target, same, margin=0.25, scale=32.0, both_ways=True) * scale
        else:
            loss = info_nce(query, item, target, scale, same)
        return loss.detach(), *torch.autograd.grad(loss, [query, item, scale])

    whole = found()
    monkeypatch.setattr(losses, "TILE", tile)
    for value, expected in zip(found(), whole, strict=True):
        torch.testing.assert_close(value, expected)


def test_no_loss_builds_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            built.append(max((t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)), default=0))
            return out

    monkeypatch.setattr(losses, "TILE", 1000)
    query, item, target = unit(60, 0).requires_grad_(), unit(400, 1).requires_grad_(), torch.arange(60)
    with Watched():
        info_nce(query, item, target, torch.tensor(9.0), lambda r, c: r[:, None] == c[None, :]).backward()
        circle(query, item, target, lambda r, c: r[:, None] == c[None, :], margin=0.25, scale=32.0, both_ways=True).backward()
    assert max(built) < 60 * 400 / 5, "400 × 4 numbers of an item's vectors, and 1,000 at a time"


@pytest.mark.parametrize("kind", ["info_nce", "circle"])
def test_a_piece_is_computed_once_with_its_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def known(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        looked.append(len(rows))
        return rows[:, None] == columns[None, :]

    monkeypatch.setattr(losses, "TILE", 18)
    query, item, scale = unit(6, 0).requires_grad_(), unit(9, 1), torch.tensor(9.0, requires_grad=True)
    if kind == "circle":
        loss = circle(query, item, torch.arange(6), known, margin=0.25, scale=32.0, both_ways=True)
    else:
        loss = info_nce(query, item, torch.arange(6), scale, known)
    made = list(looked)
    (2 * loss).backward()
    assert looked == made == [2, 2, 2, 6, 6], "two queries a piece, then three targets a piece"
    assert (item.grad, scale.grad is None) == (None, kind == "circle")
    assert query.grad is not None
    first = query.grad.clone()
    with torch.no_grad():
        assert float(info_nce(query, item, torch.arange(6), scale, known)) > 0
    again = query.detach().clone().requires_grad_()
    if kind == "circle":
        (gradient,) = torch.autograd.grad(circle(again, item, torch.arange(6), known, margin=0.25, scale=32.0, both_ways=True), again)
    else:
        (gradient,) = torch.autograd.grad(info_nce(again, item, torch.arange(6), scale, known), again)
    torch.testing.assert_close(2 * gradient, first)


@pytest.mark.parametrize("kind", ["info_nce", "circle", "one way"])
@pytest.mark.parametrize("tile", [9, 10_000])
def test_gradients_are_those_of_small_steps(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Circle loss has weights that carry no gradient: they are held where they are while the step is taken."""
    monkeypatch.setattr(losses, "TILE", tile)
    query, item = (unit(rows, seed).double().requires_grad_() for rows, seed in ((4, 0), (7, 1)))
    target, scale = torch.tensor([5, 0, 0, 2]), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    same, rows = torch.rand(4, 7, generator=torch.Generator().manual_seed(3)) < 0.3, torch.tensor([3, 0, 1])
    if kind == "info_nce":
        assert torch.autograd.gradcheck(lambda q, i, s: info_nce(q, i, target, s, same, rows), (query, item, scale))
        return
    both = kind == "circle"
    found = torch.autograd.grad(circle(query, item, target, same, margin=0.1, scale=6.0, both_ways=both, rows=rows), (query, item))
    expected = torch.autograd.grad(written_out(query, item, target, same, rows, both), (query, item))
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def written_out(query: Any, item: Any, target: Any, same: Any, rows: Any, both: bool) -> torch.Tensor:
    """Circle loss with margin 0.1 and scale 6, as autograd sees it."""
    similarity, total = query @ item.T, torch.zeros((), dtype=query.dtype)
    for row in rows.tolist():
        own = int(target[row])
        others = [similarity[row, c] for c in range(len(item)) if c != own and not same[row, c]]
        asked = [similarity[r, own] for r in range(len(query)) if r != row and not same[r, own]]
        for negatives in [others, *([asked] if both else [])]:
            sp = similarity[row, own]
            far = sum((torch.exp(6 * (sn.detach() + 0.1).clamp(min=0) * (sn - 0.1)) for sn in negatives), torch.zeros_like(sp))
            total = total + torch.log1p(far * torch.exp(-6 * (1.1 - sp.detach()) * (sp - 0.9))) / 6
    return total / len(target) / (1 + both)


@pytest.mark.parametrize("kind", ["info_nce", "circle"])
def test_the_losses_of_parts_of_the_rows_add_up(kind: str) -> None:
    query, item, target, same = unit(6, 0), unit(9, 1), torch.arange(6), torch.eye(6, 9).bool()

    def loss(rows: torch.Tensor | None) -> float:
        if kind == "circle":
            return float(circle(query, item, target, same, margin=0.25, scale=32.0, both_ways=True, rows=rows))
        return float(info_nce(query, item, target, torch.tensor(9.0), same, rows))

    assert loss(torch.tensor([4, 0])) + loss(torch.tensor([1, 2, 3, 5])) == pytest.approx(loss(None), rel=1e-6)
    assert loss(torch.tensor([], dtype=torch.int64)) == 0
