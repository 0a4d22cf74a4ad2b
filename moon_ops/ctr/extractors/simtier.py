"""SimTier (Sheng et al., 2407.19467): a histogram of the similarities to the target: how many behaviours are how much alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.seen import ITEMS, Extractor, Seen

TIERS = 20  # equal bins of [-1, 1]; the paper's number is not known


class SimTier(Extractor):
    """Counts per tier, as logarithms, through one layer: [B, TIERS]."""

    vectors = ITEMS

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.width = nn.Linear(TIERS, TIERS), TIERS

    def forward(self, seen: Seen) -> Tensor:
        """Features of the histogram [B, TIERS]."""
        scores, there = seen.similarity()
        tier = ((scores + 1) * (TIERS / 2)).long().clamp(0, TIERS - 1)
        inside = (tier[..., None] == torch.arange(TIERS, device=tier.device)) & there[..., None]  # [B, S, TIERS]
        return self.layer(torch.log1p(inside.to(scores.dtype).sum(1)))
