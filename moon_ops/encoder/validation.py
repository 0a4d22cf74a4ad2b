"""Validation while an encoder is trained: recall on the newest purchases, held out, says when a stage ends and with which weights.

Everything is of before ``trained_until``: nothing here sees the window that judges. V held-out queries, Q queries, I items, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from moon_ops.encoder import duplicates
from moon_ops.encoder.checkpoints import changing
from moon_ops.encoder.eager import embed_eager
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.pairs import Pairs, Rows
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.samples import Firsts, Samples, Texts
from moon_ops.encoder.together import once
from moon_ops.errors import SettingsError
from moon_ops.inputs.contract import Sample
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, recall
from moon_ops.ranks import first_hits
from moon_ops.recipes.encoder import EVENTS, Training

PREFIX = "best."  # of the names in a checkpoint
STAGES = ("stage2a", "stage2b")  # stage 1 learns to describe, not to find: recall says nothing of it


@dataclass(frozen=True)
class Held:
    """Queries that are not trained on, and the product that was bought after each."""

    samples: Sequence[Sample]
    spu_ids: Rows  # [V]
    search: str  # whether they are asked with pictures or with words
    since: int  # microseconds since 1970: the first of them

    def image_ids(self) -> Texts:
        """Their pictures, each once."""
        return Samples.of(self.samples).names.flat.distinct()


def hold_out(pairs: Pairs, hashes: NDArray[np.uint64], training: Training) -> tuple[Pairs, Held]:
    """The pairs that are left to train on, and the queries of the newest purchases.

    Of the time from the first query's act to the last one's the newest ``validate_share`` is looked at: queries that led to a purchase
    there, and that nobody asked before in the same words or with the same picture, or a near-identical one. No pair of them, nor of who
    asked alike, is trained on. ``hashes`` [Q] are the perceptual hashes of the queries' pictures, 0 of none. Those with pictures are held
    out where there are ``validate_least`` of them, else those without; :class:`SettingsError` where there are not so many of either.
    """
    label = _labels(pairs, hashes)
    boundary = _boundary(pairs, training.validate_share)
    early = np.zeros(int(label.max()) + 1, bool)
    early[label[pairs.acted < boundary]] = True
    bought = np.flatnonzero((pairs.event == EVENTS.index("purchase")) & ~early[label[pairs.query]])
    bought = bought[np.unique(pairs.query[bought], return_index=True)[1]]  # of several bought after one query the first
    queries = Samples.of(pairs.queries)
    pictured = queries.names.counts()[pairs.query[bought]] > 0
    counts = {IMAGE_SEARCH: int(pictured.sum()), TEXT_SEARCH: int((~pictured).sum())}
    search = next((name for name, count in counts.items() if count >= training.validate_least), "")
    rest = np.array([], np.int64)
    if search:
        bought = bought[pictured == (search == IMAGE_SEARCH)]
        gone = np.zeros(len(early), bool)
        gone[label[pairs.query[bought]]] = True
        rest = np.flatnonzero(~gone[label[pairs.query]])
    if len(rest) < 2:
        _refuse(training, counts, len(rest) if search else None)
    asked = pairs.query[bought]
    held = Held(queries.take(asked), pairs.spu_ids[pairs.item[bought]], search, int(pairs.acted[asked].min()))
    return _without_others(pairs.only(rest)), held


def _refuse(training: Training, counts: dict[str, int], left: int | None) -> None:
    found = f"{counts[IMAGE_SEARCH]} queries with pictures and {counts[TEXT_SEARCH]} without that led to new purchases"
    said = f"training.validate_share = {training.validate_share:g} of the days holds {found}"
    if left is not None:
        raise SettingsError(f"{said}, and leaves {left} pairs to train on", action="lower it, or set training.validate_steps = 0")
    raise SettingsError(
        f"{said}, fewer than training.validate_least = {training.validate_least}: recall of so few says nothing",
        action="raise training.validate_share, or set training.validate_steps = 0",
    )


def _boundary(pairs: Pairs, share: float) -> float:
    """The moment, in microseconds, from which on queries may be held out."""
    acted = pairs.acted[np.unique(pairs.query)]
    return float(acted.max() - share * (acted.max() - acted.min()))


def _labels(pairs: Pairs, hashes: NDArray[np.uint64]) -> Rows:
    """A number [Q] for queries that are one: of one group, or with one picture, or with twins."""
    twin, rows = duplicates.picture_twins(hashes), np.arange(len(pairs.queries))
    pictures, same = Firsts(Samples.of(pairs.queries).names, rows), rows.copy()
    _, first, place = np.unique(Texts.of(pictures).column.dictionary_encode().indices.to_numpy(), return_index=True, return_inverse=True)
    same[pictures.rows] = pictures.rows[first[place]]
    _, first, place = np.unique(pairs.group, return_index=True, return_inverse=True)
    ends = np.concatenate([twin, same, first[place]])
    graph = coo_array((np.ones(len(ends), bool), (np.tile(rows, 3), ends)), shape=(len(rows), len(rows)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _without_others(pairs: Pairs) -> Pairs:
    """The pairs with no query but their own: what is held out is no text for a tokenizer either."""
    used, query = np.unique(pairs.query, return_inverse=True)
    queries = Samples.of(pairs.queries).take(used)
    return replace(pairs, query=query.astype(np.int64), queries=queries, group=pairs.group[used], acted=pairs.acted[used], words=None)


@dataclass
class Record:
    """What validation has found by now: all that a checkpoint keeps of it beside weights."""

    measured: list[tuple[str, int, float]] = field(default_factory=list)  # stage, steps of it that were done, recall@10
    best: float = -1.0  # below every recall
    best_at: tuple[str, int] = ("", 0)
    waited: int = 0  # measurements of this stage since the best
    ended: dict[str, int] = field(default_factory=dict)  # stages that ended early, after so many steps


class Validation:
    """Recall@10 of held-out queries among the catalogue, as the encoder would be served, and the best weights by it."""

    def __init__(self, training: Training, encoder: Encoder, store: PixelStore, pairs: Pairs, held: Held) -> None:
        self.training, self.encoder, self.store, self.held = training, encoder, store, held
        self.items, self.spu_ids = pairs.items, pairs.spu_ids
        self.name = f"validation/{recall(held.search)}"
        self.record = Record()
        self.weights: dict[str, Tensor] = {}

    def begin(self) -> None:
        """A stage begins: it is waited for anew."""
        self.record.waited = 0

    def due(self, stage: str, step: int, steps: int) -> bool:
        """Whether to measure after ``step`` of ``steps``."""
        return stage in STAGES and step > 0 and (step % self.training.validate_steps == 0 or step == steps)

    def over(self, stage: str) -> bool:
        """Whether the stage has ended early."""
        return stage in self.record.ended

    def taken(self, stage: str, steps: int) -> int:
        """How many of a stage's ``steps`` are taken, as far as is known."""
        return self.record.ended.get(stage, steps)

    def measure(self, stage: str, step: int, model: nn.Module, steps: int) -> float:
        """Take up the ``model``, in evaluation mode, after ``step`` of a stage. The first process measures and all hear of it."""
        found, record = once(self._recall), self.record
        record.measured.append((stage, step, found))
        if found > record.best:
            record.best, record.best_at, record.waited = found, (stage, step), 0
            self.weights = {name: value.detach().clone() for name, value in changing(model).items()}
            return found
        record.waited += 1
        if self.training.patience and record.waited >= self.training.patience and step < steps:
            record.ended[stage] = step
        return found

    def _recall(self) -> float:
        asked, items = (embed_eager(self.encoder, self.store, some, shown=False) for some in (self.held.samples, self.items))
        return recall_at_10(asked, items, self.held.spu_ids, self.spu_ids)

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Put the best weights in the model's place, if anything was measured."""
        own = changing(model)
        for name, value in self.weights.items():
            if name in own:
                own[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The best weights, for a checkpoint."""
        return {PREFIX + name: value for name, value in self.weights.items()}

    def restore(self, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take up what a checkpoint kept."""
        if not told:
            return
        measured = [(stage, step, found) for stage, step, found in told["measured"]]
        self.record = Record(**{**told, "measured": measured, "best_at": tuple(told["best_at"]), "ended": dict(told["ended"])})
        self.weights = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}

    def told(self) -> dict[str, Any]:
        """For ``training.json``."""
        since = np.datetime64(self.held.since, "us")
        return {"search": self.held.search, "queries": len(self.held.samples), "since": f"{since}+00:00", **asdict(self.record)}


def recall_at_10(asked: NDArray[np.float32], items: NDArray[np.float32], wanted: Rows, spu_ids: Rows) -> float:
    """The share of queries [V, D] whose product is among the ten nearest items [I, D]."""
    return float((first_hits(asked, items, wanted, spu_ids) <= 10).mean())
