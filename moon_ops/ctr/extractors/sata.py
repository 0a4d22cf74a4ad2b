"""SA-TA, semantic-aware target attention (MUSE, 2512.07216), as its published code has it: content similarity R = cos / τ takes part in
the logit of a dot-product attention over IDs, g1·id + g2·R + g3·id·R, and a softmax over the behaviours weighs their values.

Query, key and value are one layer with SiLU each. τ starts at 0.1, the three g at 1; all are learned. Ours: one head, and behaviours that
are not there weigh nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops.ctr.extractors.seen import ITEMS, Extractor, Seen

TAU = 0.1  # at the start
NEVER = -1e4  # a logit that softmax makes nothing of


class SaTa(Extractor):
    """Interest [B, W]."""

    vectors = ITEMS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.gates = nn.Parameter(torch.ones(3))
        self.tau, self.width = nn.Parameter(torch.tensor(TAU)), width

    def forward(self, seen: Seen) -> Tensor:
        """Interest [B, W]; 0 without behaviours."""
        by_id = torch.einsum("bsw,bw->bs", F.silu(self.key(seen.behaviors)), F.silu(self.ask(seen.target)))
        alike = seen.similarity()[0] / self.tau
        logits = self.gates[0] * by_id + self.gates[1] * alike + self.gates[2] * by_id * alike
        weights = F.softmax(logits.masked_fill(~seen.present, NEVER), -1) * seen.present
        return torch.einsum("bs,bsw->bw", weights, F.silu(self.value(seen.behaviors)))
