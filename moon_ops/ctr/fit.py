"""Fit a click model: sparse updates, early stopping on the newest impressions, checkpoints that a killed run goes on from.

A refit knows how many steps it takes, so it learns from the newest impressions, too.

Embedding rows that a batch does not touch cost nothing (lazy Adam), so a step costs what its batch costs, whatever the shop's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from moon_ops import pieces
from moon_ops.ctr.dataset import POSITION, Rows, batches, mixed
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.extractors.seen import Seen
from moon_ops.ctr.metrics import auc
from moon_ops.ctr.models import ClickModel
from moon_ops.ctr.position import FASTER, PositionBias
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.errors import InputError
from moon_ops.files import put
from moon_ops.recipes.ctr import CtrRecipe

LOOKS = 2  # at the validation rows, in an epoch
SAVED = 400  # steps between two checkpoints of a model of less than LARGE numbers; of larger ones so many times
LARGE, RARER = 8_000_000, 50  # so that writing them takes no larger share of the time; at most 20,000 steps are lost
LOGGED = 20  # steps between two figures
JUDGED = 4096  # rows that are scored together
FAR = 100.0  # a logit beyond which nothing is looked for
OnStep = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Fitted:
    """How the training went: ``epochs`` until the weights that were kept, their AUC on the validation rows (NaN: there were none)."""

    loss: float  # mean over the last tenth of the steps
    epochs: float
    validation_auc: float
    steps: int
    kept: int  # steps until the weights that were kept


def fit(
    model: ClickModel,
    rows: Rows,
    recipe: CtrRecipe,
    *,
    seed: int,
    directory: Path,
    on_step: OnStep | None = None,
    steps: int | None = None,
) -> Fitted:
    """Train ``model`` on rows in time order; the last ``validation`` of them tell when to stop, and the best weights are kept. With
    ``steps`` so many are made, on all rows, and the last weights are kept.

    Called again with the same arguments it goes on from the newest checkpoint in ``directory``; with other rows, as after an erasure, it
    begins anew. Raises :class:`InputError` if the loss stops being a number.
    """
    return _Fit(model, rows, recipe, seed, Checkpoints(directory), on_step, steps).run()


def trained_rows(count: int, recipe: CtrRecipe) -> int:
    """How many of ``count`` rows in time order are trained on; the newest others tell when to stop, and nothing is learned from them."""
    return count - int(recipe.validation * count)


class _Fit:
    def __init__(
        self,
        model: ClickModel,
        rows: Rows,
        recipe: CtrRecipe,
        seed: int,
        checkpoints: Checkpoints,
        on_step: OnStep | None,
        steps: int | None = None,
    ) -> None:
        self.model, self.rows, self.recipe, self.seed, self.checkpoints, self.on_step = model, rows, recipe, seed, checkpoints, on_step
        self.trained = len(rows) if steps else trained_rows(len(rows), recipe)
        self.judged = np.arange(self.trained, len(rows))
        self.steps_per_epoch = math.ceil(self.trained / recipe.batch)
        self.total = steps or recipe.epochs * self.steps_per_epoch
        self.device = torch_device(recipe.device)
        self.model.to(self.device)
        self.optimizers = optimizers(model, recipe)
        self.saved = SAVED * min(RARER, 1 + sum(p.numel() for p in model.parameters()) // LARGE)
        self.losses: list[float] = []
        self.step, self.best_step, self.worse = 0, 0, 0
        self.best_auc = math.nan
        self.digest = rows.digest()

    def run(self) -> Fitted:
        """Prepare or resume, then all steps."""
        if not self._resume():
            for part in self.model.parts:
                if isinstance(part, Make):
                    pretrain(part, self.rows, self.trained, self.recipe, seed=self.seed)
            self._save()
        self._all_steps()
        if self.recipe.refit and self.trained < len(self.rows):  # what is killed while it is refitted does not train until here again
            self._save()
        if self.best_step:
            load_model(self.model, self._best(self.best_step), device=str(self.device))
        self.model.to("cpu")
        self._without_position()
        self.model.eval()
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        kept = self.best_step or self.step
        return Fitted(sum(tail) / len(tail), kept / self.steps_per_epoch, self.best_auc, self.step, kept)

    def _all_steps(self) -> None:
        look = max(1, self.steps_per_epoch // LOOKS)
        with tqdm(total=self.total, initial=self.step, desc=f"train {self.recipe.name}", unit="step") as bar:
            while self.step < self.total and self.worse < self.recipe.patience:
                epoch, done = divmod(self.step, self.steps_per_epoch)
                self.model.train()
                for columns, labels in mixed(self.rows, self.model.trained_on, self.recipe.batch, self.trained, (self.seed, epoch), done):
                    self._one(_on(self.device, columns), labels.to(self.device))
                    bar.update(1)
                    if self.step % look == 0 and self._look():
                        return
                    if self.step % self.saved == 0:
                        self._save()
                    if self.step == self.total:
                        return

    def _one(self, columns: tuple[Tensor, ...], labels: Tensor) -> None:
        loss = F.binary_cross_entropy_with_logits(self.model.explained(*columns), labels)
        if not math.isfinite(loss.item()):
            raise InputError(f"the click model's loss is {loss.item()} at step {self.step}", action="lower learning_rate")
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.losses.append(loss.item())
        self.step += 1
        if self.on_step and self.step % LOGGED == 0:
            self.on_step(self.step, {"loss": self.losses[-1]})

    def _look(self) -> bool:
        """Judge on the validation rows; whether to stop."""
        labels = self.rows.labels[self.judged]
        if not 0 < labels.sum() < len(labels):
            return False
        found = auc(labels, logits(self.model, self.rows, self.judged))
        if self.on_step:
            self.on_step(self.step, {"validation_auc": found})
        if not found <= self.best_auc:  # the first, too
            self.best_auc, self.best_step, self.worse = found, self.step, 0
            self._keep()
        else:
            self.worse += 1
        self.model.train()
        return self.worse >= self.recipe.patience

    def _without_position(self) -> None:
        """Scores leave the place out; a constant makes up for what it explained, so that over the rows trained on they add up to the
        clicks."""
        last = self.model.predictor[-1]
        if self.model.position is None or not isinstance(last, nn.Linear):
            return
        chosen = np.arange(self.trained)[:: 1 + self.trained // pieces.LONG]  # of many rows some say it as well
        found, rate = logits(self.model, self.rows, chosen), self.rows.labels[chosen].mean()
        with torch.no_grad():
            last.bias.add_(float(brentq(lambda more: float(expit(found + more).mean()) - rate, -FAR, FAR)))

    def _save(self) -> None:
        tensors = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        numbers = {"best_auc": self.best_auc, "best_step": float(self.best_step), "worse": float(self.worse), "rows": float(self.digest)}
        self.checkpoints.save(State("ctr", self.step, self.losses, tensors, numbers), self.model, self.optimizers)
        for other in self.checkpoints.directory.glob("best-*.safetensors"):
            if other != self._best(self.best_step):
                other.unlink()

    def _best(self, step: int) -> Path:
        """Where the best weights are, those after ``step`` steps: written once, not with every checkpoint, and not held in memory."""
        return self.checkpoints.directory / f"best-{step}.safetensors"

    def _keep(self) -> None:
        """Before a checkpoint names it; those that the last one names stay until then."""
        partial = self.checkpoints.directory / "best.partial"
        save_model(self.model, str(partial))
        put(partial, self._best(self.best_step))

    def _resume(self) -> bool:
        state = self.checkpoints.read()
        if state is None or state.scaler.get("rows") != self.digest:
            return False
        self.checkpoints.restore(self.model)
        if state.step:
            self.checkpoints.restore_optimizers(self.optimizers)
        for part in self.model.parts:
            if isinstance(part, Make):
                part.freeze()
        torch.set_rng_state(state.tensors["rng"])
        if self.device.type == "cuda" and "rng.cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["rng.cuda"], self.device)
        self.step, self.losses, self.best_auc = state.step, state.losses, state.scaler["best_auc"]
        self.best_step, self.worse = int(state.scaler["best_step"]), int(state.scaler["worse"])
        return True


def optimizers(model: ClickModel, recipe: CtrRecipe) -> list[torch.optim.Optimizer]:
    """Lazy Adam for the embedding table, AdamW for the rest."""
    rest = [value for name, value in model.named_parameters() if name not in ("embedding.weight", "position.weight")]
    return [
        torch.optim.SparseAdam([model.embedding.weight], lr=recipe.learning_rate),
        torch.optim.AdamW(
            [{"params": rest}, *_of_places(model.position, recipe)], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        ),
    ]


def _of_places(position: PositionBias | None, recipe: CtrRecipe) -> list[dict[str, Any]]:
    return [] if position is None else [{"params": [position.weight], "lr": FASTER * recipe.learning_rate, "weight_decay": 0.0}]


def logits(model: ClickModel, rows: Rows, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Click logits of the rows ``chosen``."""
    model.eval()
    device = model.embedding.weight.device
    with torch.no_grad():
        found = [model(*_on(device, columns)).cpu().numpy() for columns, _ in batches(rows, model.inputs, JUDGED, chosen)]
    pieces.let_columns_go()
    return np.concatenate(found).astype(np.float64)


def torch_device(named: str) -> torch.device:
    """The device of a recipe: ``auto`` is a GPU where there is one. :class:`InputError` for ``cuda`` where there is none."""
    there = torch.cuda.is_available()
    if named == "cuda" and not there:
        raise InputError('device = "cuda", but torch finds no such GPU', action='set device = "cpu" or "auto", or install torch for CUDA')
    return torch.device("cuda" if there and named != "cpu" else "cpu")


def _on(device: torch.device, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(column.to(device) for column in columns)


def pretrain(part: Make, rows: Rows, trained: int, recipe: CtrRecipe, *, seed: int) -> None:
    """Train MAKE's module on the vectors alone, for ``pretrain_epochs`` over the first ``trained`` rows, and freeze it."""
    device = next(part.parameters()).device
    position = PositionBias().to(device) if recipe.position else None
    groups = [{"params": list(part.parameters())}, *_of_places(position, recipe)]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    names = ("behavior_item", *Make.vectors, *([POSITION] if position else []))
    for epoch in range(recipe.pretrain_epochs):
        made = mixed(rows, names, recipe.batch, trained, (seed, epoch, 1))
        for columns, labels in tqdm(made, desc=f"MAKE epoch {epoch + 1}", unit="step"):
            columns, labels = _on(device, columns), labels.to(device)
            batch = dict(zip(names, columns, strict=True))
            nothing, present = columns[1][:, :0], batch.pop("behavior_item") > 0
            found = part(Seen(nothing, nothing, nothing, present, present, batch))[:, -1]
            found = found + position(batch[POSITION]) if position else found
            loss = F.binary_cross_entropy_with_logits(found, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    part.freeze()
