"""Stages 2a and 2b as the training loop sees them: batches, loss, and what 2b prepares with the encoder that 2a left.

P pairs, I items, H hard negatives, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from moon_ops.encoder import cleaning
from moon_ops.encoder.batches import Batch, PairBatches, Shows
from moon_ops.encoder.cleaning import CleaningReport
from moon_ops.encoder.eager import embed_eager
from moon_ops.encoder.entities import Recognizer
from moon_ops.encoder.fit import cached
from moon_ops.encoder.mining import Ceiling, mine
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.negatives import Queue, gathered, gathered_numbers
from moon_ops.encoder.objectives import Found, Sides, balanced, behaviour_loss, refined_loss
from moon_ops.encoder.pairs import Pairs, Rows
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.positives import Asked
from moon_ops.encoder.recognisers import recogniser
from moon_ops.encoder.samples import Samples
from moon_ops.errors import StageError
from moon_ops.files import write
from moon_ops.inputs.contract import title_of
from moon_ops.recipes.encoder import EncoderRecipe, Stage2b


class Behaviour:
    """Stage 2a: clicks, carts and purchases; nine kinds of pair; InfoNCE or MIM; within-product alignment."""

    name, rate = "stage2a", 1.0

    def __init__(self, encoder: Encoder, pairs: Pairs, store: PixelStore, recipe: EncoderRecipe, seed: int) -> None:
        self.recipe, self.steps = recipe, recipe.stage2a.steps
        self.model: Any = Sides(encoder, recipe.training.temperature)
        levels = recipe.stage2a.loss == "mim" or recipe.stage2a.within_product > 0
        chosen = pairs.of(recipe.stage2a.events)
        if not len(chosen):
            problem = f"stage2a.events = {list(recipe.stage2a.events)}: none of the {len(pairs)} pairs is of such an event"
            raise StageError(problem, action="name other events there, or ingest events of these kinds")
        batches = self.steps * recipe.training.accumulation
        shows = Shows(kinds=recipe.stage2a.pairs, levels=levels, sizes=recipe.stage2a.sizes, count=batches)
        self.batches = PairBatches(encoder, chosen, store, recipe.training, seed=(seed, 2), shows=shows)
        self.found = Found(torch.zeros(()), {})

    def batch(self, number: int, part: int, parts: int) -> Batch:
        """The batch of that number."""
        return self.batches.batch(number, part, parts)

    def losses(self, model: nn.Module, batch: Batch, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        """See :class:`moon_ops.encoder.fit.Stage`."""
        sides = {name: side.to(device) for name, side in batch.sides.items()}
        stage, prefixes = self.recipe.stage2a, self.recipe.training.prefixes
        shown, asked = (batch.product.to(device), batch.pictured.to(device)), Asked(batch.asker.to(device), self.batches.positives)

        def loss(vectors: dict[str, Tensor], scale: Tensor) -> Found:
            found = behaviour_loss(shown, vectors, scale, stage, prefixes, asked)
            found.metrics["temperature"] = float(1 / scale.detach())
            return found

        self.model.hold()
        self.found, passes = balanced(self.model.encoder.experts, lambda: cached(model, sides, chunk, loss))
        return passes

    def after(self, batch: Batch) -> None:
        """Nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """Nothing but weights."""
        return {}


@dataclass(frozen=True)
class Prepared:
    """What stage 2b learns from: kept pairs as rows of the purchases, and each item's hard negatives [I, H]."""

    kept: Rows
    hard: Rows
    report: CleaningReport

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        counts = torch.tensor(list(asdict(self.report).values()))
        return {"kept": torch.from_numpy(self.kept), "hard": torch.from_numpy(self.hard), "counts": counts}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor]) -> Prepared:
        """From a checkpoint: the encoder that chose these is no longer there."""
        return cls(tensors["kept"].numpy(), tensors["hard"].numpy(), CleaningReport(*tensors["counts"].tolist()))

    def write(self, place: Path) -> None:
        """To a file, for other processes."""
        write(place, lambda file: file.write(save(self.tensors())))

    @classmethod
    def read(cls, place: Path) -> Prepared:
        """What another process wrote."""
        return cls.restored(load_file(place))


class Refinement:
    """Stage 2b: purchases only, cleaned; hard, spatial and temporal negatives; circle loss."""

    name = "stage2b"

    def __init__(
        self,
        encoder: Encoder,
        purchases: Pairs,
        store: PixelStore,
        recipe: EncoderRecipe,
        seed: int,
        prepared: Prepared,
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.stage, self.steps, self.rate = recipe, recipe.stage2b, recipe.stage2b.steps, recipe.stage2b.learning_rate_share
        self.model: Any = Sides(encoder, recipe.training.temperature)
        self.prepared = prepared
        product = purchases.spu_ids if self.stage.spu_merge else purchases.item_ids
        hard = prepared.hard if self.stage.hard_negatives else None
        shows, kept = Shows(product=product, hard=hard, spread=self.stage.spatial), purchases.only(prepared.kept)
        self.batches = PairBatches(encoder, kept, store, recipe.training, seed=(seed, 3), shows=shows)
        self.queue = Queue(self.stage.queue, encoder.dim) if self.stage.queue else None
        if self.queue and tensors:
            self.queue.restore(tensors)
        self.found = Found(torch.zeros(()), {})
        self._items: Tensor | None = None

    def batch(self, number: int, part: int, parts: int) -> Batch:
        """The batch of that number."""
        return self.batches.batch(number, part, parts)

    def losses(self, model: nn.Module, batch: Batch, chunk: int, device: torch.device) -> list[Callable[[], Tensor]]:
        """See :class:`moon_ops.encoder.fit.Stage`."""
        sides = {name: side.to(device) for name, side in batch.sides.items()}
        if self.stage.hard_negatives:  # another process may have some where this one has none
            sides.setdefault("negative", sides["item"].part(len(sides["item"]), len(sides["item"])))

        def loss(vectors: dict[str, Tensor], scale: Tensor) -> Found:
            self._items = vectors["item"].detach()
            products = (batch.product.to(device), batch.negative_product.to(device))
            asked = Asked(batch.asker.to(device), self.batches.positives)
            return refined_loss(products, vectors, scale, self.queue, self.stage, self.recipe.training.prefixes, asked)

        self.model.hold()
        self.found, passes = balanced(self.model.encoder.experts, lambda: cached(model, sides, chunk, loss))
        return passes

    def after(self, batch: Batch) -> None:
        """The batch's items join the queue."""
        if self.queue is not None and self._items is not None:
            self.queue.push(gathered(self._items).detach(), gathered_numbers(batch.product.to(self._items.device)))

    def tensors(self) -> dict[str, Tensor]:
        """The chosen pairs and negatives, and the queue."""
        return self.prepared.tensors() | (self.queue.state() if self.queue else {})


def prepare(
    encoder: Encoder,
    purchases: Pairs,
    rows: Iterable[dict[str, object]],
    store: PixelStore,
    stage: Stage2b,
    seed: int,
    recognizer: Recognizer | None = None,
) -> Prepared:
    """Clean the purchases and mine hard negatives, both with the encoder as it is now (MOON, stage 2b, steps 1 to 4).

    ``rows`` are the catalogue's, for the gazetteer; another ``recognizer`` than the stage's can be plugged in.
    """
    product = purchases.spu_ids if stage.spu_merge else purchases.item_ids
    groups = cleaning.merge_spu(purchases.item, product)
    kept, counts = np.arange(len(purchases)), [len(purchases), len(np.unique(groups))]
    vectors = None
    if stage.least_similar or stage.hard_negatives:
        encoder.eval()
        vectors = embed_eager(encoder, store, purchases.items)
    if stage.least_similar and vectors is not None:
        kept = cleaning.least_similar(purchases.query, purchases.item, _similarity(encoder, purchases, store, vectors))
    counts.append(len(kept))
    if stage.least_entities:
        texts = [purchases.queries[q].text for q in purchases.query[kept]]
        titles = [title_of(purchases.items[i]) for i in purchases.item[kept]]
        enough = cleaning.mentions_enough(texts, titles, recognizer or recogniser(stage, rows), stage.least_entities)
        kept = kept[enough] if enough.any() else kept  # a shop whose texts name nothing: uncleaned rather than nothing
    counts.append(len(kept))
    if stage.category_balance and len(purchases.exposed):
        generator = np.random.default_rng((seed, 3, 1))
        exposed = purchases.categories[purchases.exposed]
        kept = kept[cleaning.balance(purchases.categories[purchases.item[kept]], exposed, len(kept), generator)]
    hard = np.full((len(purchases.items), max(stage.hard_negatives, 1)), -1, np.int64)
    if stage.hard_negatives and vectors is not None:
        ceiling = Ceiling(_asked(encoder, purchases, store, len(vectors)), stage.hard_below) if stage.hard_below else None
        hard = mine(vectors, purchases.categories, product, stage.hard_negatives, ceiling)
    before, groups_bought, dissimilar, named = counts
    return Prepared(kept, hard, CleaningReport(before, groups_bought, dissimilar, named, len(kept)))


def _similarity(encoder: Encoder, purchases: Pairs, store: PixelStore, items: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine [P] of each purchase's query and item."""
    queries, row_of = _queries(encoder, purchases, store)
    return (queries[row_of] * items[purchases.item]).sum(1)


def _asked(encoder: Encoder, purchases: Pairs, store: PixelStore, items: int) -> NDArray[np.float32]:
    """The mean vector of the queries that led to each item [I, D]; zeros where none did."""
    queries, row_of = _queries(encoder, purchases, store)
    total, count = np.zeros((items, queries.shape[1]), np.float32), np.bincount(purchases.item, minlength=items)
    np.add.at(total, purchases.item, queries[row_of])
    total /= np.maximum(count, 1)[:, None]
    return total


def _queries(encoder: Encoder, purchases: Pairs, store: PixelStore) -> tuple[NDArray[np.float32], Rows]:
    """Vectors [Q, D] of the queries that led to a purchase, each once, and which is whose [P]."""
    asked, row_of = np.unique(purchases.query, return_inverse=True)
    return embed_eager(encoder, store, Samples.of(purchases.queries).take(asked)), row_of
