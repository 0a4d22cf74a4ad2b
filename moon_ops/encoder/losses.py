"""Losses of vectors, not of models. B queries, M items, Q queued items, D dimensions; vectors are unit length.

``same`` [B, M] is true where an item is the query's own product (same item or SPU), or is known to answer it: it is no negative and is
masked out. ``target`` [B]
is the column of each query's own item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

VectorLoss = Callable[[Tensor, Tensor], Tensor]


def info_nce(query: Tensor, item: Tensor, target: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE: query → item over all M, and item → query over the B targets (MOON, stage 2a; CLIP).

    ``query`` [B, D], ``item`` [M, D] with the B targets and, maybe, further negatives. ``logit_scale`` = 1 / temperature.
    """
    logits = logit_scale * query @ item.T  # [B, M]
    own, lowest = F.one_hot(target, item.shape[0]).bool(), torch.finfo(logits.dtype).min
    number = torch.arange(len(target), device=target.device)
    others = same[:, target].T & (number[:, None] != number)  # [B, B]: of an item's several queries each is judged alone
    back = logits[:, target].T.masked_fill(others, lowest)  # [B, B]: of each target, all queries
    return (F.cross_entropy(logits.masked_fill(same & ~own, lowest), target) + F.cross_entropy(back, number)) / 2


def circle(query: Tensor, item: Tensor, target: Tensor, same: Tensor, *, margin: float, scale: float, both_ways: bool = False) -> Tensor:
    """Circle loss (Sun et al., 2020), the loss of MOON's stage 2b: each similarity is pulled by how far it is from its optimum.

    ``softplus(logsumexp(γ·αn·(sn - m)) + γ·αp·(1 - m - sp))`` with αp = [1 + m - sp]+ and αn = [sn + m]+, which carry no gradient.
    ``scale`` is γ, ``margin`` is m. ``both_ways``: the mean of that and of the same from the B targets to all queries, as in InfoNCE.
    """
    similarity = query @ item.T  # [B, M]
    known = same | F.one_hot(target, item.shape[0]).bool()
    there = _circle(similarity, target, known, margin, scale)
    if not both_ways:
        return there
    number = torch.arange(len(target), device=target.device)
    return (there + _circle(similarity[:, target].T, number, known[:, target].T, margin, scale)) / 2


def _circle(similarity: Tensor, target: Tensor, known: Tensor, margin: float, scale: float) -> Tensor:
    """Of rows [B, M], each against the columns that are not ``known`` to be right."""
    positive = similarity.gather(1, target[:, None])[:, 0]
    pull = (1 + margin - positive.detach()).clamp(min=0) * (positive - (1 - margin))
    push = (similarity.detach() + margin).clamp(min=0) * (similarity - margin)
    push = (scale * push).masked_fill(known, torch.finfo(similarity.dtype).min)
    return F.softplus(push.logsumexp(1) - scale * pull).mean() / scale


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
