"""Click models: one network of embeddings and predictor; only the behaviour extractor differs (:mod:`moon_ops.ctr.extractors`).

Letters: B rows, S behaviours of a user, W words of a query, E ID embedding, D vector dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moon_ops.ctr.extractors.cube import Cube
from moon_ops.ctr.extractors.din import Din
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.extractors.raw import Raw
from moon_ops.ctr.extractors.sata import SaTa
from moon_ops.ctr.extractors.seen import Extractor, Seen
from moon_ops.ctr.extractors.simscore import SimScore
from moon_ops.ctr.extractors.simtier import SimTier
from moon_ops.ctr.vocabulary import IDS

BASE = (  # the inputs that every model reads; those named *_vector come after them
    "ids",  # [B, 8] rows of the embedding tables, in the order of IDS; 0: nothing, 1: unknown
    "words",  # [B, W] hashed words of a text query, 0: none
    "dense",  # [B, 4] item statistics as known then, and whether the query is a picture
    "behavior_item",  # [B, S] the user's last clicked items, 0: none
    "behavior_category",  # [B, S]
)
DENSE = 4
SPREAD = 0.01  # standard deviation of embeddings at the start


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

    @property
    def width(self) -> int:
        """2E, of a behaviour: the item and its category."""
        return 2 * self.embedding_dim


EXTRACTORS: dict[str, Callable[[Sizes], list[Extractor]]] = {
    "din": lambda s: [Din(s.width)],
    "raw": lambda s: [Din(s.width), Raw(s.vector_dim)],
    "simscore": lambda s: [Din(s.width), SimScore(s.behaviors)],
    "simtier": lambda s: [Din(s.width), SimTier()],
    "sata": lambda s: [SaTa(s.width)],
    "make": lambda s: [Din(s.width), Make(s.vector_dim)],
    "simtier+make": lambda s: [Din(s.width), SimTier(), Make(s.vector_dim)],
    "simtier+sata": lambda s: [SaTa(s.width), SimTier()],
    "cube": lambda s: [Cube(s.width, s.vector_dim, s.behaviors)],
}


class ClickModel(nn.Module):
    """Embeddings, a behaviour extractor, and a predictor. :meth:`forward` gives click logits [B]."""

    offsets: Tensor

    def __init__(self, sizes: Sizes, extractor: str) -> None:
        super().__init__()
        self.sizes = sizes
        rows = [sizes.tables[name] for name in IDS]
        self.register_buffer("offsets", torch.tensor(np.cumsum([0, *rows])), persistent=False)
        # one table for all kinds of ids: a batch is one look-up, and its gradient is as sparse as the batch
        self.embedding = nn.Embedding(sum(rows) + sizes.words, sizes.embedding_dim, sparse=True)
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        self.extractors = nn.ModuleList(EXTRACTORS[extractor](sizes))
        wanted = {name for part in self.parts for name in part.vectors}
        self.inputs = (*BASE, *(["behavior_query"] if extractor == "cube" else []), *sorted(wanted))
        inputs = len(IDS) * sizes.embedding_dim + sizes.embedding_dim + DENSE + sum(part.width for part in self.parts)
        layers: list[nn.Module] = []
        for size in sizes.hidden:
            layers += [nn.Linear(inputs, size), nn.PReLU(), nn.Dropout(sizes.dropout)]
            inputs = size
        self.predictor = nn.Sequential(*layers, nn.Linear(inputs, 1))

    @property
    def parts(self) -> list[Extractor]:
        """The extractors."""
        return [part for part in self.extractors if isinstance(part, Extractor)]

    def forward(self, *columns: Tensor) -> Tensor:
        """Logits [B] of the tensors named in ``inputs``, in that order."""
        batch = dict(zip(self.inputs, columns, strict=True))
        ids, words, seen = self.embed(batch)
        count = (batch["words"] > 0).to(words.dtype)
        asked = (words * count[..., None]).sum(1) / count.sum(1, keepdim=True).clamp(min=1)
        features = [ids.flatten(1), asked, batch["dense"], *(part(seen) for part in self.extractors)]
        return self.predictor(torch.cat(features, -1)).squeeze(-1)

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Seen]:
        """The embeddings of ids [B, 8, E] and words [B, W, E], and what the extractors read."""
        item, category, query = (self.offsets[IDS.index(name)] for name in ("item", "category", "query"))
        places = [batch["ids"] + self.offsets[: len(IDS)], batch["words"] + self.offsets[len(IDS)]]
        places += [batch["behavior_item"] + item, batch["behavior_category"] + category]
        if "behavior_query" in batch:
            places.append(batch["behavior_query"] + query)
        found = self.embedding(torch.cat(places, 1)).split([p.shape[1] for p in places], 1)
        ids, words, items, categories = found[:4]
        target = torch.cat([ids[:, IDS.index("item")], ids[:, IDS.index("category")]], -1)
        queries = torch.cat([found[4], categories], -1) if len(found) > 4 else items[:, :0]
        asked = batch["behavior_query"] > 0 if "behavior_query" in batch else batch["behavior_item"][:, :0] > 0
        vectors = {name: column for name, column in batch.items() if name.endswith("_vector")}
        return ids, words, Seen(target, torch.cat([items, categories], -1), queries, batch["behavior_item"] > 0, asked, vectors)
