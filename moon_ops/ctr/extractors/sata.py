"""SA-TA, similarity-aware target attention (MUSE, 2512.07216): content similarity R takes part in the attention's logit beside the IDs'."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.seen import ITEMS, Extractor, Seen, TargetAttention, pooled


class SaTa(Extractor):
    """Interest [B, W] with logit g1·id + g2·R + g3·id·R, R = cos / τ; the four scalars are learned."""

    vectors = ITEMS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.width = TargetAttention(width, width // 2), width
        self.gates = nn.Parameter(torch.tensor([1.0, 1.0, 0.1]))
        self.log_scale = nn.Parameter(torch.tensor(1.0))  # 1 / τ

    def forward(self, seen: Seen) -> Tensor:
        """Interest [B, W]."""
        by_id = self.attention.logits(seen.target, seen.behaviors)
        scores, _ = seen.similarity()
        alike = scores * self.log_scale.exp()
        return pooled(self.gates[0] * by_id + self.gates[1] * alike + self.gates[2] * by_id * alike, seen.behaviors, seen.present)
