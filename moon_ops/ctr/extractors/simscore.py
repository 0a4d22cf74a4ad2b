"""SimScore (Sheng et al., 2407.19467): how similar each behaviour's content is to the target's, as numbers and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from moon_ops.ctr.extractors.seen import ITEMS, Extractor, Seen


class SimScore(Extractor):
    """The raw s_b, newest last, their mean and their maximum: [B, S + 2]."""

    vectors = ITEMS

    def __init__(self, behaviors: int) -> None:
        super().__init__()
        self.width = behaviors + 2

    def forward(self, seen: Seen) -> Tensor:
        """Scores [B, S + 2]; 0 where there is no vector."""
        scores, there = seen.similarity()
        mean = scores.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([scores, mean, scores.amax(1, keepdim=True)], -1)
