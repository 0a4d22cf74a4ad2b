"""Losses of vectors, not of models. B queries, M items, D dimensions; vectors are unit length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(query: Tensor, item: Tensor, target: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE with in-batch negatives: query → item and item → query (MOON, stage 2a; CLIP).

    ``query`` [B, D], ``item`` [M, D]; ``target`` [B] is the row of each query's item. ``logit_scale`` = 1 / temperature.
    ``same`` [B, M] is true where an item is the query's own product (same item or SPU): it is no negative and is masked out.
    """
    logits = logit_scale * query @ item.T  # [B, M]
    is_target = F.one_hot(target, item.shape[0]).bool()
    logits = logits.masked_fill(same & ~is_target, torch.finfo(logits.dtype).min)
    to_item = F.cross_entropy(logits, target)
    others = logits.masked_fill(same & is_target, torch.finfo(logits.dtype).min)  # of an item's several queries each is judged alone
    rest = others.logsumexp(0)[target]  # [B] the item's other products' queries
    own = logits[torch.arange(len(target)), target]
    to_query = (torch.logaddexp(own, rest) - own).mean()
    return (to_item + to_query) / 2
