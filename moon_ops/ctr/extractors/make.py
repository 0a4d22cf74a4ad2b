"""MAKE (Sheng et al., 2407.19467): content and IDs want different numbers of epochs, so a DIN on the vectors alone is trained first, for
several, and what it has learned joins the click model, which sees the data once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.seen import ITEMS, QUERIES, Extractor, Seen, TargetAttention

PROJECTED, HIDDEN = 32, 32


class Make(Extractor):
    """Hidden state and logit of the pretrained module: [B, 33]. It is frozen when the click model is trained."""

    vectors = (*ITEMS, *QUERIES)

    def __init__(self, vector_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(vector_dim, PROJECTED)
        self.attention = TargetAttention(PROJECTED, PROJECTED)
        self.hidden = nn.Sequential(nn.Linear(3 * PROJECTED + 2, 2 * HIDDEN), nn.PReLU(), nn.Linear(2 * HIDDEN, HIDDEN), nn.PReLU())
        self.logit, self.width = nn.Linear(HIDDEN, 1), HIDDEN + 1

    def forward(self, seen: Seen) -> Tensor:
        """Hidden state and logit [B, 33]."""
        target, behaviors, query = (self.project(seen.vectors[name]) for name in (*ITEMS, "query_vector"))
        match = (seen.vectors["target_vector"] * seen.vectors["query_vector"]).sum(-1, keepdim=True)
        scores, _ = seen.similarity()
        interest = self.attention(target, behaviors, seen.present)
        hidden = self.hidden(torch.cat([interest, target, query, match, scores.amax(1, keepdim=True)], -1))
        return torch.cat([hidden, self.logit(hidden)], -1)

    def freeze(self) -> None:
        """Keep what pretraining has learned."""
        self.requires_grad_(requires_grad=False)
