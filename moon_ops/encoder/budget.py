"""How long a training takes on this machine, measured before it begins, and how many of its steps fit into a number of minutes.

A few steps are taken on a copy of the encoder, in each size of picture; the encoder itself stays as it was.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from moon_ops.dealing import Deal, here
from moon_ops.encoder.checkpoints import Unkept
from moon_ops.encoder.fit import Loop
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.pairs import Pairs
from moon_ops.encoder.pixels import KEPT_BYTES, PixelStore
from moon_ops.encoder.stage2 import Behaviour
from moon_ops.encoder.together import once
from moon_ops.errors import InputError, counted
from moon_ops.files import remembered, write_text
from moon_ops.processor import processor
from moon_ops.recipes.encoder import EncoderRecipe

TRIED = 4  # steps of each size; the first one allocates, and is not counted
LEAST = 0.1  # share of the recipe's steps: with fewer an encoder has hardly left the warm-up


@dataclass(frozen=True)
class Budget:
    """What a training may take: ``minutes`` for the whole command (None: no limit, it only says how long it will take).

    ``spent`` seconds of them are gone already; what follows the training takes about as long as ``following`` steps of full size.
    """

    minutes: float | None = None
    spent: float = 0.0
    following: int = 0

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"minutes = {self.minutes} must be above 0, and finite", action="give a number of minutes, e.g. 8")


@dataclass(frozen=True)
class Means:
    """What a training has of this machine; none of it changes what is learned from a step."""

    budget: Budget | None = None
    workers: int | None = None  # processes that make batches; None: as many as there are spare cores for
    picture_bytes: int = KEPT_BYTES  # of decoded pictures that are kept on the disk
    deal: Deal = here  # who reads events


PLAIN = Means()


@dataclass(frozen=True)
class Pace:
    """Seconds that a step of a recipe takes here, by the size of its pictures in pixels."""

    recipe: EncoderRecipe
    step: dict[int, float]

    @property
    def full(self) -> float:
        """Of a step of full size."""
        return self.step[self.recipe.inputs.picture_size]

    def seconds(self, share: float = 1.0) -> float:
        """What that share of the recipe's steps takes. Taken as measured: one of stage 1 like one of stage 2a in full size."""
        of = self.recipe
        refining = self.full * (2 + of.stage2b.hard_negatives) / 2  # pictures of a pair
        behaviour = mean(self.step[size] for size in _sizes(of))
        return share * (of.stage1.steps * self.full + of.stage2a.steps * behaviour + of.stage2b.steps * refining)

    def __str__(self) -> str:
        """E.g. ``0.53 s at 48 px, 0.66 s at 64 px``."""
        return ", ".join(f"{seconds:.2g} s at {size} px" for size, seconds in self.step.items())


def operations(encoder: Encoder, sizes: tuple[int, ...]) -> dict[int, float]:
    """Operations that the picture tower takes for one picture of each size in pixels, in GFLOP; a multiplication with its sum are two."""
    found = {}
    device = next(encoder.parameters()).device
    for size in sizes:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder.picture_tokens(torch.zeros((1, 3, size, size), device=device))
        found[size] = counter.get_total_flops() / 1e9
    return found


def measure(
    encoder: Encoder, pairs: Pairs, store: PixelStore, recipe: EncoderRecipe, machine: Accelerator, workers: int | None = None
) -> Pace:
    """Take some steps of stage 2a on a copy of the encoder in every size of picture, once it has seen the pictures."""
    full = recipe.inputs.picture_size
    step = {}
    with torch.random.fork_rng():
        for size in dict.fromkeys((*_sizes(recipe), full)):
            stage = replace(recipe.stage2a, steps=TRIED, sizes=() if size == full else (size,))
            loop = Loop(recipe.training, machine, Unkept(Path()), workers=workers, total=TRIED, silent=True)
            tried = Behaviour(copy.deepcopy(encoder), pairs, store, replace(recipe, stage2a=stage), seed=0)
            for number in range(TRIED * recipe.training.accumulation):
                tried.batch(number, machine.process_index, machine.num_processes)
            loop.run(tried)
            step[size] = median(loop.seconds[1:])
    return Pace(recipe, step)


def _sizes(recipe: EncoderRecipe) -> tuple[int, ...]:
    return recipe.stage2a.sizes or (recipe.inputs.picture_size,)


def fitted(pace: Pace, budget: Budget) -> EncoderRecipe:
    """The recipe with as many of its steps as the budget has time for, shared over its stages; never more than it has.

    Raises :class:`InputError` where that is less than a tenth of them.
    """
    recipe = pace.recipe
    if budget.minutes is None:
        return recipe
    beside = budget.spent + budget.following * pace.full
    share = min(1.0, (budget.minutes * 60 - beside) / pace.seconds())
    if share < LEAST:
        least = math.ceil((beside + pace.seconds(LEAST)) / 60 + 0.1)
        raise InputError(
            f"minutes = {budget.minutes:g} is too short on {processor()}: {recipe.name}'s {recipe.steps} steps take "
            f"{pace.seconds() / 60:.1f} minutes, a tenth of them is the least, and everything beside them takes about {beside / 60:.1f}",
            action=f"give {counted(least, 'minute', 'minutes')} or more",
        )
    return recipe.with_steps(max(1, math.floor(recipe.steps * share)))


def within(budget: Budget, recipe: EncoderRecipe, place: Path, machine: Accelerator, paced: Callable[[], Pace]) -> EncoderRecipe:
    """The recipe as the run in ``place`` trains it: fitted to this machine once, and the same when a killed run goes on.

    Of several processes all measure, because a step needs them all, and the first one decides.
    """
    known = place / "steps.json"
    before = once(lambda: (remembered(known, "the steps are fitted to this machine anew") or {}).get("steps"))
    if before is not None:
        return recipe.with_steps(before)
    began = time.perf_counter()
    pace = paced()
    budget = replace(budget, spent=budget.spent + time.perf_counter() - began)

    def chosen() -> int:
        found = fitted(pace, budget)
        write_text(known, json.dumps({"steps": found.steps}))
        tqdm.write(said(pace, found, budget, machine.mixed_precision), file=sys.stderr)
        return found.steps

    return recipe.with_steps(once(chosen))


def said(pace: Pace, chosen: EncoderRecipe, budget: Budget, precision: str) -> str:
    """How long the chosen steps take and why, and what was cut of the recipe's."""
    recipe, seconds = pace.recipe, pace.seconds(chosen.steps / pace.recipe.steps)
    why = f"{pace} a step on {processor()} in {'float32' if precision == 'no' else precision}"
    line = f"training takes about {seconds / 60:.1f} minutes: {chosen.steps} steps, {why}"
    if budget.following:
        line += f"; all ten parts about {(budget.spent + seconds + budget.following * pace.full) / 60:.1f}"
    if chosen == recipe:
        return line if budget.minutes is None else f"{line}; nothing has to be cut for {budget.minutes:g} minutes"
    stages = [name for name in ("stage1", "stage2a", "stage2b") if getattr(recipe, name).steps]
    cut = ", ".join(f"{name} {getattr(chosen, name).steps} of {getattr(recipe, name).steps}" for name in stages)
    return f"{line}; steps cut to end within {budget.minutes:g} minutes: {cut}, so it will find less than the whole recipe does"
