"""DIN (Zhou et al., KDD 2018): the target attends to the user's behaviours, all of them known by ID only. The baseline."""

from __future__ import annotations

from torch import Tensor

from moon_ops.ctr.extractors.seen import Extractor, Seen, TargetAttention


class Din(Extractor):
    """Interest [B, W] from IDs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.width = TargetAttention(width, width // 2), width

    def forward(self, seen: Seen) -> Tensor:
        """Interest [B, W]."""
        return self.attention(seen.target, seen.behaviors, seen.present)
