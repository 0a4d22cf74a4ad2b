"""Raw vectors in target attention: DIN once more, on the frozen vectors in the place of ID embeddings. The plainest use of content."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.seen import ITEMS, Extractor, Seen, TargetAttention

CONTENT = 16  # vectors reach the attention through a projection of this width


class Raw(Extractor):
    """Interest from vectors, and the target's own: [B, 2 × 16]."""

    vectors = ITEMS

    def __init__(self, vector_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(vector_dim, CONTENT)
        self.attention, self.width = TargetAttention(CONTENT, CONTENT), 2 * CONTENT

    def forward(self, seen: Seen) -> Tensor:
        """Interest and target [B, 32]."""
        target, behaviors = (self.project(seen.vectors[name]) for name in ITEMS)
        return torch.cat([self.attention(target, behaviors, seen.present), target], -1)
