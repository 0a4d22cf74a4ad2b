"""Losses of vectors, not of models. B queries, M items, D dimensions; vectors are unit length.

``same`` says which items are a query's own product (same item or SPU), or are known to answer it: such an item is no negative and is masked
out. It is a matrix [B, M], or a function that gives the part of it for some queries and items. ``target`` [B] is the column of each query's
own item.

No loss builds the matrix of all queries and items: rows are judged some at a time, and each piece leaves its part of the gradient behind
before the next one takes its place. So memory is :data:`TILE` numbers a few times over, the vectors, and their gradients. ``rows`` are the
pairs to be judged, by number: of several processes each judges its own, and the sum over processes is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

VectorLoss = Callable[[Tensor, Tensor], Tensor]
Mask = Callable[[Tensor, Tensor], Tensor]  # numbers of queries [R] and of items [C] → [R, C], true where an item is no negative
Judge = Callable[[Tensor, Tensor, Tensor], Tensor]
TILE = 2**22  # similarities at a time: quickest where they stay in a processor's cache (docs/encoder.md)
GPU_TILE = 2**26


def info_nce(query: Tensor, item: Tensor, target: Tensor, logit_scale: Tensor, same: Tensor | Mask, rows: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE: query → item over all M, and item → query over the B targets (MOON, stage 2a; CLIP).

    ``query`` [B, D], ``item`` [M, D] with the B targets and, maybe, further negatives. ``logit_scale`` = 1 / temperature. Of an item's
    several queries each is judged alone.
    """
    work = _Work(target, _numbers(query) if rows is None else rows, _mask(same), _cross_entropy, own_masked=False)
    return _in_pieces(query, item, logit_scale, work) / (2 * len(target))


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

    def judge(similarity: Tensor, masked: Tensor, own: Tensor) -> Tensor:
        return _circle(similarity, masked, own, margin, scale)

    work = _Work(target, _numbers(query) if rows is None else rows, _mask(same), judge, own_masked=True, back=both_ways)
    return _in_pieces(query, item, query.new_ones(()), work) / (len(target) * (1 + both_ways))


@dataclass(frozen=True)
class _Work:
    """What is judged beside vectors. ``judge`` takes logits [R, C], what of them is masked [R, C], and the column of each row's own [R]; it
    returns the sum of the losses and leaves their gradient by the logits in the logits' place.
    """

    target: Tensor
    rows: Tensor
    known: Mask
    judge: Judge
    own_masked: bool  # whether a pair's own item is left out of what the mask lets through
    back: bool = True  # also from the targets to the queries


def _in_pieces(query: Tensor, item: Tensor, scale: Tensor, work: _Work) -> Tensor:
    """The sum of the losses, of which a backward pass only scales gradients that are there already."""
    found: Tensor = _Pieces.apply(query, item, scale, work, torch.is_grad_enabled())
    return found


class _Pieces(torch.autograd.Function):
    """The sum of a loss over pieces of the similarities, and of its gradients: no piece leaves a graph, and none is computed twice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, item: Tensor, scale: Tensor, work: _Work, learning: bool) -> Tensor:
        pieces = _Sums(query, item, scale, learning and any(ctx.needs_input_grad[:3]))
        every, columns, tile = _numbers(query), _numbers(item), TILE if query.device.type == "cpu" else GPU_TILE
        for some in work.rows.split(max(tile // max(len(item), 1), 1)):
            own = work.target[some]
            masked = work.known(some, columns).scatter(1, own[:, None], work.own_masked)
            pieces.add(work.judge, (some, own), masked)
        for some in work.rows.split(max(tile // max(len(query), 1), 1)) if work.back else ():
            own = work.target[some]
            masked = work.known(every, own).T.scatter(1, some[:, None], work.own_masked)
            pieces.add(work.judge, (own, some), masked, back=True)
        ctx.gradients = *pieces.gradients, pieces.of_scale
        return pieces.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.gradients, ctx.needs_input_grad, strict=False)
        return *(upstream * gradient if needed else None for gradient, needed in found), None, None


class _Sums:
    """The loss so far, and its gradients by the vectors and by the scale."""

    def __init__(self, query: Tensor, item: Tensor, scale: Tensor, learning: bool) -> None:
        self.sides, self.scale, self.learning = (query, item), scale, learning
        self.total, self.of_scale = query.new_zeros(()), torch.zeros_like(scale)
        self.gradients = tuple(torch.zeros_like(vectors) for vectors in (query, item)) if learning else ()
        self.place = query.new_empty(0)  # of a piece's logits, used again by the next one

    def add(self, judge: Judge, numbers: tuple[Tensor, Tensor], masked: Tensor, *, back: bool = False) -> None:
        """Judge some queries against all items, or ``back``: ``numbers`` are theirs [R], and those of what belongs to each [R]."""
        (asked, others), (some, own) = self.sides[::-1] if back else self.sides, numbers
        vectors, size = asked[some], len(some) * len(others)
        if self.place.numel() < size:
            self.place = vectors.new_empty(size)
        logits = torch.mm(vectors, others.T, out=self.place[:size].view(len(some), len(others))).mul_(self.scale)
        self.total += judge(logits, masked, own)
        if not self.learning:
            return
        to_asked, to_others = self.gradients[::-1] if back else self.gradients
        of_vectors = logits @ others
        self.of_scale += (of_vectors * vectors).sum()
        to_asked.index_add_(0, some, of_vectors.mul_(self.scale))
        to_others.addmm_(logits.T, vectors * self.scale)


def summed(part: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> Tensor:
    """The sum of ``part`` over ``rows`` [R], each of which has ``width`` similarities: in pieces of :data:`TILE` at most. No gradient."""
    tile = TILE if rows.device.type == "cpu" else GPU_TILE
    return torch.stack([part(piece) for piece in rows.split(max(tile // max(width, 1), 1))]).sum(0)


def _numbers(vectors: Tensor) -> Tensor:
    return torch.arange(len(vectors), device=vectors.device)


def _mask(same: Tensor | Mask) -> Mask:
    return (lambda rows, columns: same[rows[:, None], columns]) if isinstance(same, Tensor) else same


def _cross_entropy(logits: Tensor, masked: Tensor, own: Tensor) -> Tensor:
    """See :class:`_Work`; the gradient is the softmax, less one where a row's own column is."""
    logits.masked_fill_(masked, torch.finfo(logits.dtype).min)
    mine = logits.gather(1, own[:, None])
    loss = _softmax_(logits) - mine
    logits.scatter_add_(1, own[:, None], torch.full_like(mine, -1.0))
    return loss.sum()


def _softmax_(logits: Tensor) -> Tensor:
    """Put the softmax of each row [R, C] in its place; the logarithm of the sum [R, 1] is returned."""
    most = logits.amax(1, keepdim=True)
    total = logits.sub_(most).exp_().sum(1, keepdim=True)
    logits.div_(total)
    return most + total.log()


def _circle(similarity: Tensor, known: Tensor, own: Tensor, margin: float, scale: float) -> Tensor:
    """See :class:`_Work`: each row against the columns that are not ``known`` to be right, and its own."""
    positive = similarity.gather(1, own[:, None])
    weight, pull = (1 + margin - positive).clamp(min=0), positive - (1 - margin)
    away = (similarity + margin).clamp_(min=0)
    similarity.sub_(margin).mul_(away).mul_(scale).masked_fill_(known, torch.finfo(similarity.dtype).min)
    far = _softmax_(similarity) - scale * weight * pull
    share = far.sigmoid()
    similarity.mul_(away).mul_(share).scatter_add_(1, own[:, None], -share * weight)
    return F.softplus(far).sum() / scale


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
