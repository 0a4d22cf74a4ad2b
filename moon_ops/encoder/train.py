"""Train an encoder in MOON's stages: pretraining (1), behaviour (2a), refinement on purchases (2b), each left out at 0 steps.

A run keeps its checkpoints in ``<out>.partial`` and moves the finished encoder to ``out`` in one step. Killed and called again with the
same arguments it goes on where it was, and ends with the same encoder as an undisturbed run.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from moon_ops.dealing import Deal
from moon_ops.encoder import duplicates, pretrain, recognisers
from moon_ops.encoder.budget import PLAIN, Means, measure, operations, within
from moon_ops.encoder.checkpoints import State
from moon_ops.encoder.encoded import hashes
from moon_ops.encoder.fit import Listener, Loop, accelerator
from moon_ops.encoder.material import FOLDER, TASKS, WORDS, Material
from moon_ops.encoder.model import Encoder, build
from moon_ops.encoder.pairs import Pairs, behaviour
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.pretrain import Tasks
from moon_ops.encoder.samples import Samples
from moon_ops.encoder.sentence import Card
from moon_ops.encoder.sentence import write as write_sentence_files
from moon_ops.encoder.shards import checkpoints
from moon_ops.encoder.stage2 import Behaviour, Prepared, Refinement, prepare
from moon_ops.encoder.texts import Again, Words
from moon_ops.encoder.together import each, once, shared
from moon_ops.encoder.validation import Held, Validation, hold_out
from moon_ops.errors import StageError
from moon_ops.files import put, write_text
from moon_ops.inputs.images import PIXELS
from moon_ops.lake.lake import Lake
from moon_ops.lake.tables import items_as_of
from moon_ops.recipes.encoder import EncoderRecipe

STAGES = ("stage1", "stage2a", "stage2b")


@dataclass(frozen=True)
class TrainReport:
    """What a training run used and reached; stored as ``training.json`` in the checkpoint."""

    recipe: str
    trained_until: str  # ISO 8601: the encoder has seen no behaviour from then on
    seed: int
    pairs: int
    twins: int  # pairs left out because a near-identical picture leads to the same product
    refined_pairs: int  # of stage 2b, after its cleaning
    parameters: int  # of the saved encoder
    trained: int  # numbers that were trained, adapters and all
    steps: int
    tokens: int  # that the trunk read: those of each stage's first batch, times its steps
    first_loss: float
    last_loss: float  # mean of the last tenth of the steps
    resumed_at: int  # step that a killed run was taken up at, 0 if it was not
    left_out: dict[str, int] = field(default_factory=dict)  # events and pairs beyond a cap, by its name; purchases that were undone
    validation: dict[str, Any] = field(default_factory=dict)  # what was held out, each measurement, and the best; empty without


def train(
    lake: Lake,
    out: Path,
    recipe: EncoderRecipe,
    *,
    trained_until: dt.datetime,
    seed: int,
    on_step: Listener | None = None,
    keep_stages: bool = False,
    means: Means = PLAIN,
) -> TrainReport:
    """Train the recipe on the lake's behaviour before ``trained_until`` and save the encoder to the directory ``out``.

    ``on_step(step, metrics)`` hears of loss, temperature, learning rate, samples/s, gradient norm, false negatives and hardness, and of
    each validation's recall. With ``keep_stages`` the encoder after each stage is saved too, as ``out-<stage>``. With a budget among the
    ``means`` some steps are measured first, and all of them cut to its minutes; the saved recipe holds those that were trained. The same
    seed and steps give the same encoder on the same machine, whatever its means. Raises :class:`StageError` without pairs,
    :class:`InputError` for a loss that is no number or a budget too short.
    """
    began, machine = time.perf_counter(), accelerator(recipe.training)
    place, budget = out.with_name(f"{out.name}.partial"), means.budget
    material = _material(lake, trained_until, recipe, seed, budget.minutes if budget else None, place, means.deal)
    pairs, kept = material.pairs, checkpoints(recipe.training, place, brought=bool(recipe.lora or recipe.frozen))
    encoder = each(lambda: build(recipe, Again(lambda: chain(corpus(pairs), pretrain.corpus())), seed))
    _announce(encoder, recipe, machine)
    store, pairs = _pictures(lake, material, recipe, place / "pixels-0.u8", means), _read(encoder, pairs, place / WORDS)
    material = replace(material, pairs=pairs)
    if budget is not None:
        budget = replace(budget, spent=budget.spent + time.perf_counter() - began)
        recipe = within(budget, recipe, place, machine, lambda: measure(encoder, pairs, store, recipe, machine, means.workers))
    loop = Loop(recipe.training, machine, kept, on_step, workers=means.workers, total=recipe.steps)
    if material.held is not None:
        loop.validation = Validation(recipe.training, encoder, store, pairs, material.held)
    run = _Run(recipe, trained_until, seed, encoder, material, store, loop, kept.read())
    for name in (stage for stage in STAGES if getattr(recipe, stage).steps):
        if run.stage(name) and keep_stages:
            once(partial(_save, encoder, recipe, run.report(), out.with_name(f"{out.name}-{name}")))
    once(partial(_save, encoder, recipe, run.report(), out))
    once(lambda: shutil.rmtree(place, ignore_errors=True))
    return run.report()


@dataclass
class _Run:
    """A training: what its stages have in common, and how far it has come."""

    recipe: EncoderRecipe
    trained_until: dt.datetime
    seed: int
    encoder: Encoder
    material: Material
    store: PixelStore
    loop: Loop
    state: State | None  # of a killed run, until it is taken up
    refined: int = 0
    resumed_at: int = 0
    tokens: int = 0

    def stage(self, name: str) -> bool:
        """Train a stage, or what is left of it; False if the killed run had ended it."""
        past = self.state is not None and STAGES.index(name) < STAGES.index(self.state.stage)
        here = self.state if self.state is not None and self.state.stage == name else None
        made, validation = self._made(name, here), self.loop.validation
        if self.state is not None and validation is not None:
            validation.restore(self.state.validation, self.state.tensors)
        if self.state is not None and not past and not self.resumed_at:
            self.loop.checkpoints.restore(made.model)
            self.resumed_at, self.loop.losses = self.loop.done + (here.step if here else 0), list(self.state.losses)
        if past:
            self.loop.done += made.steps
        else:
            self.loop.run(made, here)
            self.state = None
        self.tokens += _tokens(made, self.recipe, made.steps if validation is None else validation.taken(name, made.steps))
        return not past

    def _made(self, name: str, here: State | None) -> Any:
        if name == "stage1":
            return pretrain.Pretraining(self.encoder, self._tasks(), self.store, self.recipe, self.seed)
        if name == "stage2a":
            return Behaviour(self.encoder, self.material.pairs, self.store, self.recipe, self.seed)
        purchases = self.material.pairs.of(("purchase",))
        if len(purchases) < 2:
            problem = f"there are {len(purchases)} purchases after a query: stage 2b has nothing to refine with"
            raise StageError(problem, action="set stage2b.steps = 0")
        restored = Prepared.restored(here.tensors) if here is not None else None
        prepared = restored or self._prepared(purchases)
        self.refined = len(prepared.kept)
        return Refinement(self.encoder, purchases, self.store, self.recipe, self.seed, prepared, here.tensors if here else None)

    def _tasks(self) -> Tasks:
        place = self.loop.checkpoints.directory / TASKS
        return shared(
            lambda: Tasks.of(self.encoder, self.material.rows),
            lambda made: made.write(place),
            lambda: Tasks.read(self.encoder, place),
            mapped=True,
        )

    def _prepared(self, purchases: Pairs) -> Prepared:
        place = self.loop.checkpoints.directory / "prepared.safetensors"
        return shared(
            lambda: prepare(self.encoder, purchases, self.material.rows, self.store, self.recipe.stage2b, self.seed),
            lambda made: made.write(place),
            lambda: Prepared.read(place),
        )

    def report(self) -> TrainReport:
        """What the training has used and reached by now."""
        losses = self.loop.losses
        tail = losses[-max(1, len(losses) // 10) :]
        first, last = (losses[0], sum(tail) / len(tail)) if losses else (math.nan, math.nan)
        return TrainReport(
            recipe=self.recipe.name,
            trained_until=self.trained_until.isoformat(),
            seed=self.seed,
            pairs=len(self.material.pairs),
            twins=self.material.twins,
            refined_pairs=self.refined,
            parameters=self.encoder.parameter_count(),
            trained=self.encoder.trained_count(),
            steps=len(losses),
            tokens=self.tokens,
            first_loss=first,
            last_loss=last,
            resumed_at=self.resumed_at,
            left_out=self.material.pairs.left_out,
            validation=self.loop.validation.told() if self.loop.validation is not None else {},
        )


def _announce(encoder: Encoder, recipe: EncoderRecipe, machine: Accelerator) -> None:
    """What the picture tower computes, on stderr: most of a training step."""
    if machine.is_main_process:
        sizes = tuple(dict.fromkeys((*recipe.stage2a.sizes, recipe.inputs.picture_size)))
        counts = ", ".join(f"{count:.3f} GFLOP at {size} px" for size, count in operations(encoder, sizes).items())
        trained = f", {encoder.trained_count():,} trained" if recipe.lora or recipe.frozen else ""
        tqdm.write(f"{recipe.name}: {encoder.parameter_count():,} parameters{trained}; a picture takes {counts}", file=sys.stderr)


def corpus(pairs: Pairs) -> Iterator[str]:
    """The texts a tokenizer is trained on: every item's, then every query's, in a fixed order."""
    return (text for samples in (pairs.items, pairs.queries) for text in Samples.of(samples).texts if text)


def tokens_of(batch: Any) -> int:
    """Tokens, of text and pictures, that the trunk reads of a batch."""
    sides = batch.sides.values() if hasattr(batch, "sides") else [batch.inputs]
    return sum(int(side.attention_mask.sum()) for side in sides)


def _tokens(stage: Any, recipe: EncoderRecipe, taken: int) -> int:
    """Tokens of a stage's batches in ``taken`` steps: those of the first batch of each picture size, times the batches of that size."""
    count, sizes = stage.steps * recipe.training.accumulation, len(recipe.stage2a.sizes) if stage.name == "stage2a" else 0
    starts = [math.ceil(n * count / max(sizes, 1)) for n in range(max(sizes, 1) + 1)]
    last = taken * recipe.training.accumulation
    parts = ((start, min(stop, last)) for start, stop in pairwise(starts))
    return sum((stop - start) * tokens_of(stage.batch(start, 0, 1)) for start, stop in parts if stop > start)


def _pairs(lake: Lake, until: dt.datetime, recipe: EncoderRecipe, deal: Deal) -> tuple[Pairs, int]:
    """The behaviour before ``until``, each near-identical photograph of one product once; and how many pairs that left out."""
    pairs = behaviour(lake, until, recipe.caps, recipe.most, recipe.excepted, deal=deal)
    if recipe.deduplicate < 0:
        return pairs, 0
    asked = Samples.of(pairs.queries).take(pairs.query)
    group = duplicates.twins(hashes(lake, asked), asked.texts, recipe.deduplicate)
    both = np.stack([group, pairs.spu_ids[pairs.item]])
    order = np.lexsort(both)  # of equal ones the first comes first
    first = np.append(True, (both[:, order][:, 1:] != both[:, order][:, :-1]).any(0))
    keep = np.sort(order[first])
    return pairs.joined(group).only(keep), len(pairs) - len(keep)


def _material(lake: Lake, until: dt.datetime, recipe: EncoderRecipe, seed: int, minutes: float | None, place: Path, deal: Deal) -> Material:
    """What the run in ``place`` learns from beside pixels."""

    def begun() -> Material:
        recognisers.require(recipe.stage2b)
        (pairs, twins), held = _pairs(lake, until, recipe, deal), None
        if recipe.training.validate_steps:
            pairs, held = hold_out(pairs, hashes(lake, pairs.queries), recipe.training)
        _claim(place, recipe, pairs, seed, minutes, held)
        return Material(pairs, twins, items_as_of(lake, until), held)

    return shared(begun, lambda made: made.write(place / FOLDER), lambda: Material.read(place / FOLDER), mapped=True)


def _read(encoder: Encoder, pairs: Pairs, place: Path) -> Pairs:
    """The same pairs with the tokens that ``encoder`` reads of them, in the directory ``place``."""
    made = partial(Words.of, encoder, pairs.queries, pairs.items)
    return replace(pairs, words=shared(made, lambda words: words.write(place), lambda: Words.read(place), mapped=True))


def _pictures(lake: Lake, material: Material, recipe: EncoderRecipe, place: Path, means: Means) -> PixelStore:
    """The pictures that training may look at; what is decoded of them goes to the file ``place``."""
    size, detector, names = recipe.inputs.picture_size, recipe.inputs.core_region, material.image_ids()
    store = shared(
        lambda: PixelStore.over(lake, names, size, place, detector=detector, kept=means.picture_bytes),
        lambda store: store.file.close(),
        lambda: PixelStore.open(lake, place),
    )
    if means.budget is not None and means.budget.minutes is not None:
        once(lambda: store.fill(names))  # what is decoded later would be in no count
    return store


def _claim(place: Path, recipe: EncoderRecipe, pairs: Pairs, seed: int, minutes: float | None, held: Held | None) -> None:
    """Make the run's directory, or keep it where the same run was killed; what another recipe, seed or lake left there is thrown away."""
    content = hashlib.sha256(json.dumps([PIXELS, asdict(recipe), seed, minutes], sort_keys=True).encode())
    learned = (pairs.query, pairs.item, pairs.event, pairs.item_ids, pairs.spu_ids, pairs.categories, pairs.group, pairs.known)
    for column in (*learned, *([held.spu_ids] if held else [])):
        content.update(str(column.shape).encode())
        content.update(np.ascontiguousarray(column).data)
    for sample in chain(pairs.queries, pairs.items, held.samples if held else ()):  # one at a time: there may be millions
        content.update(json.dumps([sample.text, sample.image_ids]).encode())
    identity = content.hexdigest()
    named = place / "identity"
    if not named.is_file() or named.read_text() != identity:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    write_text(named, identity)


def _save(encoder: Encoder, recipe: EncoderRecipe, report: TrainReport, out: Path) -> None:
    """Write beside ``out`` and move it there in one step, replacing an encoder that is there."""
    scratch = out.with_name(f"{out.name}.new-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    encoder.save(scratch)
    (scratch / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    (scratch / "training.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    about = (recipe.name, report.trained_until, report.seed, encoder.dim, recipe.training.prefixes, report.parameters)
    write_sentence_files(encoder, scratch, Card(*about, metrics={}, licence="other", place=out.name))
    if out.exists():
        shutil.rmtree(out)
    put(scratch, out)
