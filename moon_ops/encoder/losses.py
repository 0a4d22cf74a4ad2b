"""Losses of vectors, not of models. B queries, M items, Q queued items, D dimensions; vectors are unit length.

``same`` [B, M] is true where an item is the query's own product (same item or SPU): it is no negative and is masked out. ``target`` [B]
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
    own = F.one_hot(target, item.shape[0]).bool()
    logits = logits.masked_fill(same & ~own, torch.finfo(logits.dtype).min)
    back = logits[:, target].T  # [B, B]: of each target, all queries
    return (F.cross_entropy(logits, target) + F.cross_entropy(back, torch.arange(len(target), device=target.device))) / 2


def circle(query: Tensor, item: Tensor, target: Tensor, same: Tensor, *, margin: float, scale: float) -> Tensor:
    """Circle loss (Sun et al., 2020), the loss of MOON's stage 2b: each similarity is pulled by how far it is from its optimum.

    ``softplus(logsumexp(γ·αn·(sn - m)) + γ·αp·(1 - m - sp))`` with αp = [1 + m - sp]+ and αn = [sn + m]+, which carry no gradient.
    ``scale`` is γ, ``margin`` is m.
    """
    similarity = query @ item.T  # [B, M]
    positive = similarity.gather(1, target[:, None])[:, 0]
    pull = (1 + margin - positive.detach()).clamp(min=0) * (positive - (1 - margin))
    push = (similarity.detach() + margin).clamp(min=0) * (similarity - margin)
    push = (scale * push).masked_fill(same | F.one_hot(target, item.shape[0]).bool(), torch.finfo(similarity.dtype).min)
    return F.softplus(push.logsumexp(1) - scale * pull).mean() / scale


def nested(loss: VectorLoss, query: Tensor, item: Tensor, prefixes: Sequence[int]) -> Tensor:
    """Matryoshka: the mean of ``loss`` over the whole vectors and each shorter prefix, normalised anew (Kusupati et al., 2022)."""
    lengths = sorted({*(p for p in prefixes if p < query.shape[1]), query.shape[1]})
    parts = [loss(F.normalize(query[:, :n], dim=-1), F.normalize(item[:, :n], dim=-1)) for n in lengths]
    return torch.stack(parts).mean()


def next_token(logits: Tensor, input_ids: Tensor, is_target: Tensor) -> Tensor:
    """Cross entropy of each token marked in ``is_target`` [B, L], predicted from the position before it (stage 1)."""
    return F.cross_entropy(logits[:, :-1][is_target[:, 1:]], input_ids[:, 1:][is_target[:, 1:]])
