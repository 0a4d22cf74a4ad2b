"""CUBE, the content-based user behaviour extractor (MOON Embedding, 2511.11305, application stage), on frozen vectors.

The behaviours b are the user's items and the queries that led to them. With s_b = cos(r_b, r_t): the ID interest by cross attention, the
fusion interest Σ w(s_b)·e_b, the content interest Σ w(s_b)·r_b, the raw s_b, r_t, r_q and cos(r_t, r_q). The paper does not say what w is;
here it is a softmax over items and one over queries, each with a learned temperature.

Studies leave out one part at a time: ``items`` or ``queries`` (all that is made of those behaviours), ``by_id``, ``fusion``, ``content``,
``cosines`` (the raw s_b), ``vectors`` (r_t and r_q), ``match`` (cos(r_t, r_q)).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moon_ops.ctr.extractors.seen import QUERIES, Extractor, Seen, similarity

CONTENT = 16  # raw vectors reach the predictor through a projection of this width, so that they do not outweigh the IDs
NEVER = -1e4  # a logit that softmax makes nothing of
KINDS = {"items": "behavior_vector", "queries": "behavior_query_vector"}  # of behaviours, and the input that has their vectors


class Cube(Extractor):
    """Everything the paper concatenates, but for the user's and the query's embeddings, which every model has."""

    def __init__(self, width: int, vector_dim: int, behaviors: int, without: Collection[str] = ()) -> None:
        super().__init__()
        self.without, self.asks = frozenset(without), "queries" not in without
        self.kinds = tuple(kind for kind in KINDS if kind not in without)
        count = len(self.kinds)
        self.log_scale = nn.Parameter(torch.full((2,), 2.0))  # exp(2) ≈ 7.4 = 1 / temperature, of items and of queries
        widths = {"by_id": width, "fusion": count * width, "content": count * CONTENT, "cosines": count * behaviors}
        widths |= {"vectors": 2 * CONTENT, "match": 1}
        if "by_id" not in without:
            self.ask, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        if not {"content", "vectors"} <= self.without:
            self.project = nn.Linear(vector_dim, CONTENT)
        self.width = sum(size for part, size in widths.items() if part not in without) + 2
        alike = not {"fusion", "content", "cosines"} <= self.without
        self.vectors = ("target_vector", QUERIES[0], *(KINDS[kind] for kind in self.kinds if alike))

    def forward(self, seen: Seen) -> Tensor:
        """Features [B, width]."""
        target, query = seen.vectors["target_vector"], seen.vectors["query_vector"]
        match = (target * query).sum(-1, keepdim=True)  # unit vectors: the dot product is the cosine
        found = [] if "by_id" in self.without else [self._by_id(seen)]
        found += self._by_content(seen, target)
        found += [] if "vectors" in self.without else [self.project(target), self.project(query)]
        found += [] if "match" in self.without else [match]
        return torch.cat([*found, *((v != 0).any(-1, keepdim=True).to(match.dtype) for v in (target, query))], -1)

    def _by_content(self, seen: Seen, target: Tensor) -> list[Tensor]:
        """Fusion interests, content interests and similarities of each kind of behaviour, as far as they are wanted."""
        fusion, content, raw = [], [], []
        for number, (kind, name) in enumerate(KINDS.items()):
            if kind not in self.kinds or name not in self.vectors:
                continue
            embedded, present = (seen.behaviors, seen.present) if kind == "items" else (seen.queries, seen.asked)
            scores, there = similarity(seen.vectors[name], target, present)
            weights = F.softmax((self.log_scale[number].exp() * scores).masked_fill(~there, NEVER), -1) * there
            fusion += [] if "fusion" in self.without else [torch.einsum("bs,bsw->bw", weights, embedded)]
            if "content" not in self.without:
                content.append(self.project(torch.einsum("bs,bsd->bd", weights, seen.vectors[name])))
            raw += [] if "cosines" in self.without else [scores]
        return [*fusion, *content, *raw]

    def _by_id(self, seen: Seen) -> Tensor:
        """ID interest [B, W]: e_t asks, {e_b} of items and queries are keys and values."""
        kinds = {"items": (seen.behaviors, seen.present), "queries": (seen.queries, seen.asked)}
        behaviors, present = (torch.cat([kinds[kind][which] for kind in self.kinds], 1) for which in (0, 1))
        logits = torch.einsum("bsw,bw->bs", self.key(behaviors), self.ask(seen.target)) / behaviors.shape[-1] ** 0.5
        weights = F.softmax(logits.masked_fill(~present, NEVER), -1) * present
        return torch.einsum("bs,bsw->bw", weights, self.value(behaviors))
