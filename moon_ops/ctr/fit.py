"""Fit a click model: sparse updates, early stopping on the newest impressions, checkpoints that a killed run goes on from.

A refit knows how many steps it takes, so it learns from the newest impressions, too.

Embedding rows that a batch does not touch cost nothing (lazy Adam), so a step costs what its batch costs, whatever the shop's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from tqdm import tqdm

from moon_ops import pieces
from moon_ops.ctr import processes
from moon_ops.ctr.dataset import Rows, batches, mixed
from moon_ops.ctr.extractors.make import Make
from moon_ops.ctr.metrics import auc
from moon_ops.ctr.models import ClickModel
from moon_ops.ctr.position import of_places
from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.ctr.prepared import trained_rows
from moon_ops.ctr.pretraining import pretrain
from moon_ops.ctr.sharded import ShardedEmbedding
from moon_ops.ctr.table_log import TableLog, readable
from moon_ops.encoder.checkpoints import Checkpoints, State
from moon_ops.encoder.together import each, once
from moon_ops.errors import InputError
from moon_ops.files import put
from moon_ops.recipes.ctr import CtrRecipe

LOOKS = 2  # at the validation rows, in an epoch
SAVED = 400  # steps between two checkpoints that write less than LARGE numbers; of larger ones so many times
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
        self.device = processes.torch_device(recipe.device)
        self.part = processes.join(self.device)
        self.model.to(self.device)
        self.optimizers = optimizers(model, recipe)
        shared = model.embedding.part if isinstance(model.embedding, ShardedEmbedding) else WHOLE
        self.table = TableLog(checkpoints.directory, model.embedding.weight, self.optimizers[0], shared)
        self.rest = nn.ModuleDict({name: part for name, part in model.named_children() if name != "embedding"})
        self.losses: list[float] = []
        self.step, self.saved, self.best_step, self.worse = 0, 0, 0, 0  # saved: the step of the last checkpoint
        self.best_auc, self.best_table = math.nan, list[str]()
        self.digest = once(rows.digest)

    def run(self) -> Fitted:
        """Prepare or resume, then all steps."""
        if not self._resume():
            for part in self.model.parts:
                if isinstance(part, Make):
                    pretrain(part, self.rows, self.trained, self.recipe, seed=self.seed, share=self.part)
            self._save()
        self._all_steps()
        if self.recipe.refit and self.trained < len(self.rows):  # what is killed while it is refitted does not train until here again
            self._save()
        if self.best_step:
            each(self._take_best)
        self.model.to("cpu")
        self._without_position()
        self.model.eval()
        if isinstance(self.model.embedding, ShardedEmbedding) and (whole := self.model.embedding.whole()) is not None:
            self.model.embedding = whole
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        kept = self.best_step or self.step
        return Fitted(sum(tail) / len(tail), kept / self.steps_per_epoch, self.best_auc, self.step, kept)

    def _all_steps(self) -> None:
        look, names = max(1, self.steps_per_epoch // LOOKS), self.model.trained_on
        with tqdm(total=self.total, initial=self.step, desc=f"train {self.recipe.name}", unit="step", **processes.bar()) as bar:
            while self.step < self.total and self.worse < self.recipe.patience:
                epoch, done = divmod(self.step, self.steps_per_epoch)
                self.model.train()
                for columns, labels in mixed(self.rows, names, self.recipe.batch, self.trained, (self.seed, epoch), done, self.part):
                    self._one(_on(self.device, columns), labels.to(self.device))
                    bar.update(1)
                    if self.step % look == 0 and self._look():
                        return
                    if self.step % SAVED == 0 and self._due():
                        self._save()
                    if self.step == self.total:
                        return

    def _one(self, columns: tuple[Tensor, ...], labels: Tensor) -> None:
        """A step, on this process's part of a batch; the loss and its gradient are those of the whole batch."""
        if self.part.of > 1:  # what is dropped is of the process and the step alone, so that any number of them may go on
            torch.manual_seed(int(np.random.SeedSequence((self.seed, self.step, self.part.number)).generate_state(1)[0]))
        size = min(self.recipe.batch, self.trained - self.step % self.steps_per_epoch * self.recipe.batch)
        loss = processes.loss_of(self.model.explained(*columns), labels, size)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        weight = self.model.embedding.weight
        if weight.grad is not None and not isinstance(self.model.embedding, ShardedEmbedding):
            weight.grad = processes.summed_rows(weight.grad)
        found = processes.summed(self.rest.parameters(), loss)
        if not math.isfinite(found):
            raise InputError(f"the click model's loss is {found} at step {self.step}", action="lower learning_rate")
        self.table.touch()
        for optimizer in self.optimizers:
            optimizer.step()
        self.losses.append(found)
        self.step += 1
        if self.on_step and self.step % LOGGED == 0:
            self.on_step(self.step, {"loss": self.losses[-1]})

    def _look(self) -> bool:
        """Judge on the validation rows; whether to stop."""
        labels = self.rows.labels[self.judged]
        if not 0 < labels.sum() < len(labels):
            return False
        scores = logits(self.model, self.rows, self.judged, self.part)
        found = once(lambda: auc(labels, scores))
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
        found, rate = logits(self.model, self.rows, chosen, self.part), self.rows.labels[chosen].mean()
        with torch.no_grad():
            last.bias.add_(float(brentq(lambda more: float(expit(found + more).mean()) - rate, -FAR, FAR)))

    def _due(self) -> bool:
        """Whether a checkpoint would be no larger than what the steps since the last one pay for."""
        steps = self.step - self.saved
        numbers = self.table.pending() * self.recipe.embedding_dim + sum(value.numel() for value in self.rest.parameters())
        return steps >= RARER * SAVED or numbers * SAVED < LARGE * steps

    def _save(self) -> None:
        each(lambda: self.table.write(self.step))
        once(self._write)
        self.saved = self.step

    def _write(self) -> None:
        """A checkpoint, which names the files of the table that count."""
        tensors = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        numbers = {"best_auc": self.best_auc, "best_step": float(self.best_step), "worse": float(self.worse), "rows": float(self.digest)}
        named = {"table": self.table.files, "best": self.best_table}
        self.checkpoints.save(State("ctr", self.step, self.losses, tensors, numbers, named), self.rest, self.optimizers[1:])
        self.table.remove_others(*named.values())
        for other in self.checkpoints.directory.glob("best-*.safetensors"):
            if other != self._best(self.best_step):
                other.unlink()

    def _best(self, step: int) -> Path:
        """Where the best weights but the table are, those after ``step`` steps: written once, not with every checkpoint, and not held in
        memory."""
        return self.checkpoints.directory / f"best-{step}.safetensors"

    def _keep(self) -> None:
        """Before a checkpoint names it; those that the last one names stay until then."""
        each(lambda: self.table.write(self.step))
        self.best_table = self.table.files
        once(self._write_best)

    def _write_best(self) -> None:
        partial = self.checkpoints.directory / "best.partial"
        save_model(self.rest, str(partial))
        put(partial, self._best(self.best_step))

    def _take_best(self) -> None:
        load_model(self.rest, self._best(self.best_step), device=str(self.device))
        self.table.restore(self.best_table)

    def _resume(self) -> bool:
        state = each(self.checkpoints.read)
        if state is None or state.scaler.get("rows") != self.digest or "table" not in state.validation:  # that was in it before
            return False
        files, best = state.validation["table"], state.validation["best"]
        kept = int(state.scaler["best_step"])
        if not each(lambda: self.table.readable([*best, *files]) and (not best or readable(self._best(kept)))):
            return False
        each(lambda: self._restore(state, files))
        self.step, self.losses, self.best_auc = state.step, state.losses, state.scaler["best_auc"]
        self.saved = self.step
        self.best_step, self.worse, self.best_table = int(state.scaler["best_step"]), int(state.scaler["worse"]), best
        return True

    def _restore(self, state: State, files: list[str]) -> None:
        self.checkpoints.restore(self.rest)
        self.table.restore(files, state.step)
        if state.step:
            self.checkpoints.restore_optimizers(self.optimizers[1:])
        for part in self.model.parts:
            if isinstance(part, Make):
                part.freeze()
        torch.set_rng_state(state.tensors["rng"])
        if self.device.type == "cuda" and "rng.cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["rng.cuda"], self.device)


def optimizers(model: ClickModel, recipe: CtrRecipe) -> list[torch.optim.Optimizer]:
    """Lazy Adam for the embedding table, AdamW for the rest."""
    rest = [value for name, value in model.named_parameters() if name not in ("embedding.weight", "position.weight")]
    return [
        torch.optim.SparseAdam([model.embedding.weight], lr=recipe.learning_rate),
        torch.optim.AdamW(
            [{"params": rest}, *of_places(model.position, recipe)], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        ),
    ]


def logits(model: ClickModel, rows: Rows, chosen: NDArray[np.int64], part: Part = WHOLE) -> NDArray[np.float64]:
    """Click logits of the rows ``chosen``; of several processes each scores its ``part``, and all have those of all."""
    model.eval()
    device = model.embedding.weight.device
    with torch.no_grad():
        found = [model(*_on(device, columns)).cpu().numpy() for columns, _ in batches(rows, model.inputs, JUDGED, chosen, part)]
    pieces.let_columns_go()
    places = [part.rows(np.arange(some.start, some.stop)) for some in pieces.spans(len(chosen), JUDGED)]
    return processes.collected(np.concatenate(found).astype(np.float64), np.concatenate(places), len(chosen))


def _on(device: torch.device, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(column.to(device) for column in columns)
