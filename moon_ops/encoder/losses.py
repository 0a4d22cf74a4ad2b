"""Losses of vectors, not of models. B queries, M items, D dimensions; vectors are unit length.

``same`` says which items are a query's own product (same item or SPU), or are known to answer it: such an item is no negative and is masked
out. It is a matrix [B, M], or a function that gives the part of it for some queries and items. ``target`` [B] is the column of each query's
own item.

No loss builds the matrix of all queries and items: rows are judged some at a time, and once more where their gradient is needed. So memory
is :data:`TILE` numbers a few times over, and the vectors. ``rows`` are the pairs to be judged, by number: of several processes each judges
its own, and the sum over processes is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

VectorLoss = Callable[[Tensor, Tensor], Tensor]
Mask = Callable[[Tensor, Tensor], Tensor]  # numbers of queries [R] and of items [C] → [R, C], true where an item is no negative
TILE = 2**22  # similarities at a time: quickest where they stay in a processor's cache (docs/encoder.md)
GPU_TILE = 2**26


def info_nce(query: Tensor, item: Tensor, target: Tensor, logit_scale: Tensor, same: Tensor | Mask, rows: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE: query → item over all M, and item → query over the B targets (MOON, stage 2a; CLIP).

    ``query`` [B, D], ``item`` [M, D] with the B targets and, maybe, further negatives. ``logit_scale`` = 1 / temperature.
    """
    known, every, columns = _mask(same), _numbers(query), _numbers(item)

    def there(some: Tensor) -> Tensor:
        own = target[some]
        masked = known(some, columns).scatter(1, own[:, None], False)
        return _cross_entropy(logit_scale * query[some] @ item.T, masked, own)

    def back(some: Tensor) -> Tensor:  # of an item's several queries each is judged alone
        own = target[some]
        masked = known(every, own).T.scatter(1, some[:, None], False)
        return _cross_entropy(logit_scale * item[own] @ query.T, masked, some)

    chosen = every if rows is None else rows
    return (summed(there, chosen, len(item)) + summed(back, chosen, len(query))) / (2 * len(target))


def circle(
    query: Tensor,
    item: Tensor,
    target: Tensor,
    same: Tensor | Mask,
    *,
    margin: float,
    scale: float,
    both_ways: bool = False,
    rows: Tensor | None = None,
) -> Tensor:
    """Circle loss (Sun et al., 2020), the loss of MOON's stage 2b: each similarity is pulled by how far it is from its optimum.

    ``softplus(logsumexp(γ·αn·(sn - m)) + γ·αp·(1 - m - sp))`` with αp = [1 + m - sp]+ and αn = [sn + m]+, which carry no gradient.
    ``scale`` is γ, ``margin`` is m. ``both_ways``: the mean of that and of the same from the B targets to all queries, as in InfoNCE.
    """
    known, every, columns = _mask(same), _numbers(query), _numbers(item)

    def there(some: Tensor) -> Tensor:
        own = target[some]
        return _circle(query[some] @ item.T, own, known(some, columns).scatter(1, own[:, None], True), margin, scale)

    def back(some: Tensor) -> Tensor:
        own = target[some]
        return _circle(item[own] @ query.T, some, known(every, own).T.scatter(1, some[:, None], True), margin, scale)

    chosen = every if rows is None else rows
    loss = summed(there, chosen, len(item)) / len(target)
    return (loss + summed(back, chosen, len(query)) / len(target)) / 2 if both_ways else loss


def summed(part: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> Tensor:
    """The sum of ``part`` over ``rows`` [R], each of which has ``width`` similarities: in pieces of :data:`TILE` at most.

    A piece is computed once more for its gradient, unless there is only one.
    """
    tile = TILE if rows.device.type == "cpu" else GPU_TILE
    pieces = rows.split(max(tile // max(width, 1), 1))
    if len(pieces) == 1:
        return part(rows)
    return torch.stack([checkpoint(part, piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]).sum()


def _numbers(vectors: Tensor) -> Tensor:
    return torch.arange(len(vectors), device=vectors.device)


def _mask(same: Tensor | Mask) -> Mask:
    return (lambda rows, columns: same[rows[:, None], columns]) if isinstance(same, Tensor) else same


def _cross_entropy(logits: Tensor, masked: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.masked_fill(masked, torch.finfo(logits.dtype).min), target, reduction="sum")


def _circle(similarity: Tensor, target: Tensor, known: Tensor, margin: float, scale: float) -> Tensor:
    """The sum over rows [R, C], each against the columns that are not ``known`` to be right."""
    positive = similarity.gather(1, target[:, None])[:, 0]
    pull = (1 + margin - positive.detach()).clamp(min=0) * (positive - (1 - margin))
    push = (similarity.detach() + margin).clamp(min=0) * (similarity - margin)
    push = (scale * push).masked_fill(known, torch.finfo(similarity.dtype).min)
    return F.softplus(push.logsumexp(1) - scale * pull).sum() / scale


def nested(loss: VectorLoss, query: Tensor, item: Tensor, prefixes: Sequence[int]) -> Tensor:
    """Matryoshka: the mean of ``loss`` over the whole vectors and each shorter prefix, normalised anew (Kusupati et al., 2022)."""
    lengths = sorted({*(p for p in prefixes if p < query.shape[1]), query.shape[1]})
    parts = [loss(F.normalize(query[:, :n], dim=-1), F.normalize(item[:, :n], dim=-1)) for n in lengths]
    return torch.stack(parts).mean()


def next_token(logits: Tensor, input_ids: Tensor, is_target: Tensor) -> Tensor:
    """Mean cross entropy of the tokens marked in ``is_target`` [B, L], each predicted from the position before it; 0 of none (stage 1)."""
    marked = is_target[:, 1:]
    total = F.cross_entropy(logits[:, :-1][marked], input_ids[:, 1:][marked], reduction="sum")
    return total / marked.sum().clamp(min=1)
