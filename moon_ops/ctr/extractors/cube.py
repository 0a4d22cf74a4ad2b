"""CUBE, the content-based user behaviour extractor (MOON Embedding, 2511.11305, application stage), on frozen vectors.

The behaviours b are the user's items and the queries that led to them. With s_b = cos(r_b, r_t): the ID interest by cross attention, the
fusion interest Σ w(s_b)·e_b, the content interest Σ w(s_b)·r_b, the raw s_b, r_t, r_q and cos(r_t, r_q). The paper does not say what w is;
here it is a softmax over items and one over queries, each with a learned temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops.ctr.extractors.seen import ITEMS, QUERIES, Extractor, Seen, similarity

CONTENT = 16  # raw vectors reach the predictor through a projection of this width, so that they do not outweigh the IDs
NEVER = -1e4  # a logit that softmax makes nothing of


class Cube(Extractor):
    """Everything the paper concatenates, but for the user's and the query's embeddings, which every model has."""

    vectors = (*ITEMS, *QUERIES)

    def __init__(self, width: int, vector_dim: int, behaviors: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((2,), 2.0))  # exp(2) ≈ 7.4 = 1 / temperature, of items and of queries
        self.ask, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.project = nn.Linear(vector_dim, CONTENT)
        self.width = width + 2 * width + 4 * CONTENT + 2 * behaviors + 3

    def forward(self, seen: Seen) -> Tensor:
        """Features [B, width]."""
        target, query = seen.vectors["target_vector"], seen.vectors["query_vector"]
        kinds = ((seen.behaviors, seen.present, "behavior_vector"), (seen.queries, seen.asked, "behavior_query_vector"))
        fusion, content, raw = [], [], []
        for number, (embedded, present, name) in enumerate(kinds):
            scores, there = similarity(seen.vectors[name], target, present)
            weights = F.softmax((self.log_scale[number].exp() * scores).masked_fill(~there, NEVER), -1) * there
            fusion.append(torch.einsum("bs,bsw->bw", weights, embedded))
            content.append(self.project(torch.einsum("bs,bsd->bd", weights, seen.vectors[name])))
            raw.append(scores)
        match = (target * query).sum(-1, keepdim=True)  # unit vectors: the dot product is the cosine
        known = [(v != 0).any(-1, keepdim=True).to(match.dtype) for v in (target, query)]
        return torch.cat([self._by_id(seen), *fusion, *content, *raw, self.project(target), self.project(query), match, *known], -1)

    def _by_id(self, seen: Seen) -> Tensor:
        """ID interest [B, W]: e_t asks, {e_b} of items and queries are keys and values."""
        behaviors = torch.cat([seen.behaviors, seen.queries], 1)
        present = torch.cat([seen.present, seen.asked], 1)
        logits = torch.einsum("bsw,bw->bs", self.key(behaviors), self.ask(seen.target)) / behaviors.shape[-1] ** 0.5
        weights = F.softmax(logits.masked_fill(~present, NEVER), -1) * present
        return torch.einsum("bs,bsw->bw", weights, self.value(behaviors))
