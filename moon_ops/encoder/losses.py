"""Losses of vectors, not of models. B queries, M items, D dimensions; vectors are unit length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(query: Tensor, item: Tensor, target: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """InfoNCE with in-batch negatives, from the query's side (MOON, stage 2a).

    ``query`` [B, D], ``item`` [M, D]; ``target`` [B] is the row of each query's item. ``logit_scale`` = 1 / temperature.
    ``same`` [B, M] is true where an item is the target's own product (same item or SPU): it is no negative and is masked out.
    """
    logits = logit_scale * query @ item.T  # [B, M]
    is_target = F.one_hot(target, item.shape[0]).bool()
    logits = logits.masked_fill(same & ~is_target, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, target)
