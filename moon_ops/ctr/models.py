"""Click models: one network, two behaviour extractors. Only the extractor differs between ID-only DIN and CUBE.

Letters: B rows, S behaviours of a user, W words of a query, E ID embedding, D vector dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTENT = 16  # raw vectors reach the predictor through a projection of this width, so that they do not outweigh the IDs

IDS = ("item", "user", "spu", "category", "brand", "seller", "price")  # one row of each embedding table per example
INPUTS = (  # the tensors of a batch, in the order in which the exported graph takes them
    *IDS,
    "dense",  # [B, 4] item statistics as known then, and whether the query is a picture
    "words",  # [B, W] hashed words of a text query, 0: none
    "behavior_item",  # [B, S] the user's last clicked items, 0: none
    "behavior_category",  # [B, S]
    "target_vector",  # [B, D] zeros: no vector
    "query_vector",  # [B, D]
    "behavior_vector",  # [B, S, D]
    "behavior_query_vector",  # [B, S, D] the queries that led to those clicks
)
DENSE = 4


@dataclass(frozen=True)
class Sizes:
    """Rows of each embedding table (rows 0 and 1 are "nothing" and "unknown"), and widths."""

    tables: dict[str, int]
    words: int
    embedding_dim: int
    hidden: tuple[int, ...]
    vector_dim: int
    behaviors: int
    dropout: float


class ClickModel(nn.Module):
    """Embeddings, a behaviour extractor, and a predictor. :meth:`forward` gives click logits [B]."""

    def __init__(self, sizes: Sizes, extractor: str) -> None:
        super().__init__()
        width = sizes.embedding_dim
        tables = {name: nn.Embedding(rows, width, padding_idx=0) for name, rows in sizes.tables.items()}
        self.tables = nn.ModuleDict(tables)
        self.words = nn.Embedding(sizes.words, width, padding_idx=0)
        for table in (*tables.values(), self.words):
            nn.init.normal_(table.weight, std=0.01)
        self.interest = TargetAttention(2 * width, width)
        self.content = CubeExtractor(sizes.vector_dim, 2 * width, sizes.behaviors) if extractor == "cube" else None
        inputs = len(IDS) * width + width + DENSE + 2 * width + (self.content.width if self.content else 0)
        layers: list[nn.Module] = []
        for size in sizes.hidden:
            layers += [nn.Linear(inputs, size), nn.PReLU(), nn.Dropout(sizes.dropout)]
            inputs = size
        self.predictor = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, *columns: Tensor) -> Tensor:
        """Logits [B] of the tensors named in :data:`INPUTS`, in that order."""
        batch = dict(zip(INPUTS, columns, strict=True))
        ids = [self.tables[name](batch[name]) for name in IDS]
        words = self.words(batch["words"])
        count = (batch["words"] > 0).sum(1, keepdim=True).clamp(min=1)
        present = batch["behavior_item"] > 0  # [B, S]
        target = torch.cat([self.tables["item"](batch["item"]), self.tables["category"](batch["category"])], -1)  # [B, 2E]
        behaviors = torch.cat([self.tables["item"](batch["behavior_item"]), self.tables["category"](batch["behavior_category"])], -1)
        features = [*ids, words.sum(1) / count, batch["dense"], self.interest(target, behaviors, present)]
        if self.content is not None:
            vectors = (batch["target_vector"], batch["query_vector"], batch["behavior_vector"], batch["behavior_query_vector"])
            features.append(self.content(behaviors, present, *vectors))
        return self.predictor(torch.cat(features, -1)).squeeze(-1)


class TargetAttention(nn.Module):
    """DIN's activation unit: each behaviour is weighed by a small network on (behaviour, target, difference, product)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, target: Tensor, behaviors: Tensor, present: Tensor) -> Tensor:
        """Interest [B, 2E] from target [B, 2E], behaviours [B, S, 2E], and which of them are there [B, S]."""
        beside = target[:, None, :].expand_as(behaviors)
        logits = self.unit(torch.cat([behaviors, beside, behaviors - beside, behaviors * beside], -1)).squeeze(-1)
        weights = torch.sigmoid(logits) * present  # DIN does not normalise: how much interest there is counts, too
        return (weights[..., None] * behaviors).sum(1) / present.shape[1] ** 0.5


class CubeExtractor(nn.Module):
    """CUBE, the content-based user behaviour extractor (MOON Embedding, application stage), on frozen vectors.

    With s_b = cos(r_b, r_t): fusion interest Σ w(s_b)·e_b, content interest Σ w(s_b)·r_b, the raw s_b themselves, r_t, r_q and
    cos(r_t, r_q). The paper does not say what w is; here it is a softmax over behaviours with a learned temperature.
    """

    def __init__(self, vector_dim: int, behavior_width: int, behaviors: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.0))  # exp(2) ≈ 7.4 = 1 / temperature
        self.project = nn.Linear(vector_dim, CONTENT)
        self.width = behavior_width + 4 * CONTENT + 2 * behaviors + 3

    def forward(
        self, behaviors: Tensor, present: Tensor, target: Tensor, query: Tensor, behavior_vector: Tensor, behavior_query: Tensor
    ) -> Tensor:
        """Features [B, width] from e_b [B, S, 2E] and the vectors r_t, r_q [B, D], r_b of items and of queries [B, S, D]."""
        by_item, weights, raw_item = self._similar(target, behavior_vector, present)
        by_query, _, raw_query = self._similar(target, behavior_query, present)
        fusion = (weights[..., None] * behaviors).sum(1)
        match = (target * query).sum(-1, keepdim=True)  # unit vectors: the dot product is the cosine
        there = [(v != 0).any(-1, keepdim=True).to(match.dtype) for v in (target, query)]
        content = [self.project(v) for v in (by_item, by_query, target, query)]
        return torch.cat([fusion, *content, raw_item, raw_query, match, *there], -1)

    def _similar(self, target: Tensor, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Content interest [B, D], its weights [B, S], and the raw similarities [B, S] (0 where there is no vector)."""
        there = present & (vectors != 0).any(-1)
        similarity = torch.einsum("bsd,bd->bs", vectors, target) * there
        weights = F.softmax((self.log_scale.exp() * similarity).masked_fill(~there, -1e4), -1) * there
        return torch.einsum("bs,bsd->bd", weights, vectors), weights, similarity
