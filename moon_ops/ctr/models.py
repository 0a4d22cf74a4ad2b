"""Click models: one network of embeddings and predictor; only the behaviour extractor differs (:mod:`moon_ops.ctr.extractors`).

Letters: B rows, S behaviours of a user, W words of a query, E ID embedding, D vector dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from moon_ops.columns import Feature, dense_features, id_features, list_features
from moon_ops.ctr.dataset import LIST, POSITION
from moon_ops.ctr.extractors.cube import Cube
from moon_ops.ctr.extractors.din import Din
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.extractors.query import Query
from moon_ops.ctr.extractors.raw import Raw
from moon_ops.ctr.extractors.sata import SaTa
from moon_ops.ctr.extractors.seen import Extractor, Seen
from moon_ops.ctr.extractors.simscore import SimScore
from moon_ops.ctr.extractors.simtier import SimTier
from moon_ops.ctr.position import PositionBias
from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.ctr.sharded import ShardedEmbedding

BASE = (  # the inputs that every model reads; those named *_vector come after them
    "ids",  # [B, K] rows of the embedding tables, in the order of columns.id_features; 0: nothing, 1: unknown
    "words",  # [B, W] hashed words of a text query, 0: none
    "dense",  # [B, N] in the order of columns.dense_features: item statistics as known then, whether the query is a picture
    "behavior_item",  # [B, S] the user's last clicked items, 0: none
    "behavior_category",  # [B, S]
)
IDS = tuple(feature.name for feature in id_features())  # of every shop
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
    own: tuple[Feature, ...] = ()  # columns of the shop's own
    without: tuple[str, ...] = ()  # parts of CUBE
    position: bool = False  # whether training knows the place in the list

    @property
    def width(self) -> int:
        """2E, of a behaviour: the item and its category."""
        return 2 * self.embedding_dim


EXTRACTORS: dict[str, Callable[[Sizes], list[Extractor]]] = {
    "din": lambda s: [Din(s.width)],
    "din+cos": lambda s: [Din(s.width), Query(s.vector_dim, cosine=True, vector=False)],
    "din+query": lambda s: [Din(s.width), Query(s.vector_dim, cosine=False, vector=True)],
    "din+cos+query": lambda s: [Din(s.width), _both(s)],
    "raw": lambda s: [Din(s.width), Raw(s.vector_dim)],
    "raw+cos+query": lambda s: [Din(s.width), Raw(s.vector_dim), _both(s)],
    "simscore": lambda s: [Din(s.width), SimScore(s.behaviors)],
    "simtier": lambda s: [Din(s.width), SimTier()],
    "sata": lambda s: [SaTa(s.width)],
    "make": lambda s: [Din(s.width), Make(s.vector_dim)],
    "simtier+make": lambda s: [Din(s.width), SimTier(), Make(s.vector_dim)],
    "simtier+sata": lambda s: [SaTa(s.width), SimTier()],
    "simtier+sata+cos+query": lambda s: [SaTa(s.width), SimTier(), _both(s)],
    "cube": lambda s: [Cube(s.width, s.vector_dim, s.behaviors, s.without)],
}


def _both(sizes: Sizes) -> Query:
    return Query(sizes.vector_dim, cosine=True, vector=True)


class ClickModel(nn.Module):
    """Embeddings, a behaviour extractor, and a predictor. :meth:`forward` gives click logits [B].

    Training reads ``trained_on``, which has one input more if the place in the list takes part, and its logits are :meth:`explained`.
    """

    offsets: Tensor

    embedding: nn.Embedding | ShardedEmbedding

    def __init__(self, sizes: Sizes, extractor: str, part: Part = WHOLE) -> None:
        """With a ``part`` of several the embedding table is shared out among so many processes."""
        super().__init__()
        self.sizes = sizes
        self.ids = tuple(feature.name for feature in id_features(sizes.own))
        self.lists = tuple(feature.name for feature in list_features(sizes.own))
        rows = [sizes.tables[name] for name in (*self.ids, *self.lists)]
        self.register_buffer("offsets", torch.tensor(np.cumsum([0, *rows])), persistent=False)
        # one table for all kinds of ids: a batch is one look-up, and its gradient is as sparse as the batch
        self.embedding = _table(sum(rows) + sizes.words, sizes.embedding_dim, part)
        self.extractors = nn.ModuleList(EXTRACTORS[extractor](sizes))
        wanted = {name for part in self.parts for name in part.vectors}
        self.inputs = (
            *BASE,
            *(["behavior_query"] if any(part.asks for part in self.parts) else []),
            *(LIST + name for name in self.lists),
            *sorted(wanted),
        )
        tables = len(self.ids) + len(self.lists) + 1  # and the words
        inputs = tables * sizes.embedding_dim + len(dense_features(sizes.own)) + sum(part.width for part in self.parts)
        layers: list[nn.Module] = []
        for size in sizes.hidden:
            layers += [nn.Linear(inputs, size), nn.PReLU(), nn.Dropout(sizes.dropout)]
            inputs = size
        self.predictor = nn.Sequential(*layers, nn.Linear(inputs, 1))
        self.position = PositionBias() if sizes.position else None

    @property
    def parts(self) -> list[Extractor]:
        """The extractors."""
        return [part for part in self.extractors if isinstance(part, Extractor)]

    def forward(self, *columns: Tensor) -> Tensor:
        """Logits [B] of the tensors named in ``inputs``, in that order."""
        batch = dict(zip(self.inputs, columns, strict=True))
        ids, several, seen = self.embed(batch)
        means = [_mean(rows, batch[name] > 0) for name, rows in several.items()]
        features = [ids.flatten(1), *means, batch["dense"], *(part(seen) for part in self.extractors)]
        return self.predictor(torch.cat(features, -1)).squeeze(-1)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The inputs that training reads."""
        return self.inputs if self.position is None else (*self.inputs, POSITION)

    def explained(self, *columns: Tensor) -> Tensor:
        """Logits [B] of the tensors named in ``trained_on``: what the place in the list explains is added to the model's own."""
        return self(*columns) if self.position is None else self(*columns[:-1]) + self.position(columns[-1])

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Seen]:
        """The embeddings of ids [B, K, E], of words and of each list [B, W, E], and what the extractors read."""
        item, category, query = (self.offsets[self.ids.index(name)] for name in ("item", "category", "query"))
        count = len(self.ids)
        several = {"words": batch["words"] + self.offsets[count + len(self.lists)]}
        several |= {LIST + name: batch[LIST + name] + self.offsets[count + place] for place, name in enumerate(self.lists)}
        behaviour = [batch["behavior_item"] + item, batch["behavior_category"] + category]
        if "behavior_query" in batch:
            behaviour.append(batch["behavior_query"] + query)
        places = [batch["ids"] + self.offsets[:count], *several.values(), *behaviour]
        found = self.embedding(torch.cat(places, 1)).split([p.shape[1] for p in places], 1)
        ids, rows, (items, categories, *queried) = found[0], found[1 : 1 + len(several)], found[1 + len(several) :]
        target = torch.cat([ids[:, self.ids.index("item")], ids[:, self.ids.index("category")]], -1)
        queries = torch.cat([queried[0], categories], -1) if queried else items[:, :0]
        asked = batch["behavior_query"] > 0 if queried else batch["behavior_item"][:, :0] > 0
        vectors = {name: column for name, column in batch.items() if name.endswith("_vector")}
        seen = Seen(target, torch.cat([items, categories], -1), queries, batch["behavior_item"] > 0, asked, vectors)
        return ids, dict(zip(several, rows, strict=True)), seen


def _table(rows: int, dim: int, part: Part) -> nn.Embedding | ShardedEmbedding:
    """The same numbers whether one process holds them or several."""
    if part.of == 1:
        table = nn.Embedding(rows, dim, sparse=True)  # has drawn once already
        nn.init.normal_(table.weight, std=SPREAD)
        return table
    sharded = ShardedEmbedding(rows, dim, part)
    for std in (1.0, SPREAD):
        sharded.draw(std)
    return sharded


def _mean(rows: Tensor, there: Tensor) -> Tensor:
    """The mean [B, E] of the embeddings [B, W, E] that are there [B, W]; zeros where none is."""
    count = there.to(rows.dtype)
    return (rows * count[..., None]).sum(1) / count.sum(1, keepdim=True).clamp(min=1)
