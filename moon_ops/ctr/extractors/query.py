"""The query's content, for a model that has no other: cos(r_t, r_q), the vector r_q, or both. What CUBE must beat in a search shop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.seen import Extractor, Seen

CONTENT = 16  # r_q reaches the predictor through a projection of this width, as in CUBE


class Query(Extractor):
    """cos(r_t, r_q) if ``cosine``, r_q projected if ``vector``, and which of the vectors there are: [B, width]."""

    def __init__(self, vector_dim: int, *, cosine: bool, vector: bool) -> None:
        super().__init__()
        self.cosine = cosine
        self.project = nn.Linear(vector_dim, CONTENT) if vector else None
        self.vectors = ("target_vector", "query_vector") if cosine else ("query_vector",)
        self.width = int(cosine) + CONTENT * int(vector) + len(self.vectors)

    def forward(self, seen: Seen) -> Tensor:
        """Features [B, width]; 0 where a vector is missing."""
        query = seen.vectors["query_vector"]
        found = [(seen.vectors["target_vector"] * query).sum(-1, keepdim=True)] if self.cosine else []
        found += [] if self.project is None else [self.project(query)]
        return torch.cat([*found, *((seen.vectors[name] != 0).any(-1, keepdim=True).to(query.dtype) for name in self.vectors)], -1)
