"""Train a click model on impressions joined with the features of ``ctr_v<N>``, and export it to ONNX with a parity certificate."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn

from moon_ops.ctr import processes
from moon_ops.ctr.dataset import Rows, batches
from moon_ops.ctr.fit import Fitted, OnStep, fit
from moon_ops.ctr.models import ClickModel, Sizes
from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.ctr.prepared import InMemory, Prepared, Source, trained_rows
from moon_ops.ctr.score import GRAPH, Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings.as_of import Joined
from moon_ops.encoder.export import quiet_exporter
from moon_ops.encoder.together import once
from moon_ops.errors import ContractError, InputError
from moon_ops.files import put
from moon_ops.recipes.ctr import CtrRecipe

PARITY = 1e-4  # greatest difference of a probability between eager and exported
SAMPLE = 256  # rows that the parity certificate compares


@dataclass(frozen=True)
class CtrReport:
    """What a click model was trained on; stored as ``ctr.json`` beside it."""

    recipe: str
    extractor: str
    contract_id: str
    feature_service: str
    behaviors: int
    top_k: int
    trained_from: str
    trained_until: str
    seed: int
    rows: int
    clicks: int
    parameters: int
    last_loss: float
    epochs: float  # until the weights that were kept
    validation_auc: float | None  # of these; None without validation rows
    parity: float  # greatest difference of a probability, eager against exported
    events: dict[str, int] = field(default_factory=dict)  # what became of clicks and of what is beyond a cap: impressions.Shown
    refit_steps: int = 0  # of the refit on all rows; 0: none


@dataclass(frozen=True)
class Origin:
    """Where impressions come from: Feast's service, and the span of their times."""

    feature_service: str
    trained_from: dt.datetime
    trained_until: dt.datetime
    events: dict[str, int] = field(default_factory=dict)  # what became of those that rows were made of


def train(
    joined: Joined,
    tables: Tables,
    out: Path,
    recipe: CtrRecipe,
    *,
    origin: Origin,
    seed: int,
    on_step: OnStep | None = None,
) -> CtrReport:
    """:func:`train_on` impressions that are in memory (see :mod:`moon_ops.ctr.dataset`)."""
    return train_on(InMemory(joined, tables, origin.events), out, recipe, origin=origin, seed=seed, on_step=on_step)


def train_on(source: Source, out: Path, recipe: CtrRecipe, *, origin: Origin, seed: int, on_step: OnStep | None = None) -> CtrReport:
    """Train on the rows of ``source`` and write the model to the directory ``out`` in one step; of several processes the first writes.

    The recipe as used is kept beside it (``recipe.json``). Killed and called again with the same arguments it goes on from its checkpoint.
    Raises :class:`InputError` if the rows hold only one class, or no value of a column that the recipe declares, or if the loss stops
    being a number, :class:`ContractError` if the exported graph scores differently from the model.
    """
    part = processes.join(processes.torch_device(recipe.device))
    made, model = _begun(source, recipe, seed, part)
    working = out.with_name(f"{out.name}.partial")
    done, steps = fit(model, made.rows, recipe, seed=seed, directory=working, on_step=on_step), 0
    if recipe.refit:
        count = len(made.rows)
        steps = max(1, round(done.kept * count / trained_rows(count, recipe)))
        made, model = _begun(source, replace(recipe, validation=0.0, refit=False), seed, part)
        heard = partial(_later, on_step, done.steps)
        done = replace(done, loss=fit(model, made.rows, recipe, seed=seed, directory=working / "refit", on_step=heard, steps=steps).loss)
    return once(lambda: _written(made, model, recipe, out, (origin, seed, done, steps)))


def _written(made: Prepared, model: ClickModel, recipe: CtrRecipe, out: Path, how: tuple[Origin, int, Fitted, int]) -> CtrReport:
    """Write the model and what is known of it, and forget the checkpoints."""
    (origin, seed, done, steps), rows, working = how, made.rows, out.with_name(f"{out.name}.partial")
    fresh = _emptied(working / "model")
    _kept(model, made.vocabulary, recipe, fresh)
    _export(model, rows, fresh / GRAPH)
    about = CtrReport(
        recipe.name, recipe.extractor, rows.tables.items.contract_id, origin.feature_service, recipe.behaviors, recipe.top_k,
        origin.trained_from.isoformat(), origin.trained_until.isoformat(), seed, len(rows), int(rows.labels.sum()),
        sum(p.numel() for p in model.parameters()), done.loss, done.epochs,
        None if math.isnan(done.validation_auc) else done.validation_auc, math.nan, made.events, steps,
    )  # fmt: skip
    _write(about, fresh, "ctr.json")
    about = replace(about, parity=_parity(model, rows, fresh))
    _write(about, fresh, "ctr.json")
    shutil.rmtree(out, ignore_errors=True)
    put(fresh, out)
    shutil.rmtree(working, ignore_errors=True)
    return about


def _begun(source: Source, recipe: CtrRecipe, seed: int, part: Part) -> tuple[Prepared, ClickModel]:
    """What the rows to train on know, all rows as that tells them, and a fresh model."""
    made = source.rows(recipe)
    return made, build(made.rows, made.vocabulary, recipe, seed, part)


def _later(on_step: OnStep | None, before: int, step: int, found: dict[str, float]) -> None:
    """Who hears of steps hears of a refit's as those after the first training's."""
    if on_step is not None:
        on_step(before + step, found)


def _emptied(directory: Path) -> Path:
    """A directory of a killed run, without what that left there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def build(rows: Rows, vocabulary: Vocabulary, recipe: CtrRecipe, seed: int, part: Part = WHOLE) -> ClickModel:
    """A fresh model of the recipe for these rows, of a ``part`` of several processes; :class:`InputError` if the rows to train on hold only
    one class."""
    trained = trained_rows(len(rows), recipe)
    clicks = int(rows.labels[:trained].sum())
    if not 0 < clicks < trained:
        problem = f"label: {clicks} of {trained} rows are clicks, so there is nothing to tell apart"
        raise InputError(problem, action="bring impressions and clicks")
    if recipe.position and not rows.positions[:trained].any():
        problem = "position = true, but no impression trained on knows its place in the list"
        raise InputError(problem, action="bring events with the column position, or set position = false")
    torch.manual_seed(seed)
    read = recipe.top_k or recipe.behaviors
    vectors, tables = rows.tables.items.dim, vocabulary.sizes()
    sizes = Sizes(
        tables, vocabulary.word_rows, recipe.embedding_dim, recipe.hidden, vectors, read, recipe.dropout, recipe.own,
        recipe.without, recipe.position,
    )  # fmt: skip
    model = ClickModel(sizes, recipe.extractor, part if recipe.embedding_sharding == "rows" else WHOLE)
    last = model.predictor[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():  # start at the mean click rate, not at one half
        last.bias.fill_(math.log(clicks / (trained - clicks)))
    return model


def _kept(model: ClickModel, vocabulary: Vocabulary, recipe: CtrRecipe, directory: Path) -> None:
    save_model(model, str(directory / "model.safetensors"))
    vocabulary.save(directory)
    _write(recipe, directory, "recipe.json")


def _export(model: ClickModel, rows: Rows, path: Path) -> None:
    """One ONNX graph with a free number of rows."""
    columns, _ = next(batches(rows, model.inputs, 4, np.arange(min(4, len(rows)))))
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in columns)
    with quiet_exporter():
        program = torch.onnx.export(
            model, columns, dynamo=True, dynamic_shapes=(free,), input_names=list(model.inputs), output_names=["logit"], verbose=False
        )
    assert program is not None, "dynamo=True always returns a program"
    program.save(path, external_data=False)


def _parity(model: ClickModel, rows: Rows, directory: Path) -> float:
    """The greatest difference of a probability; :class:`ContractError` if it is above :data:`PARITY`."""
    chosen = np.arange(min(SAMPLE, len(rows)))
    columns, _ = next(batches(rows, model.inputs, SAMPLE, chosen))
    with torch.no_grad():
        eager = torch.sigmoid(model(*columns)).numpy()
    difference = float(np.abs(eager - Scorer(directory).score(rows, chosen)).max())
    if not difference <= PARITY:  # NaN, too
        raise ContractError(
            f"the exported click model differs from the trained one by {difference:.2e}", action="report this model's recipe"
        )
    return difference


def _write(content: CtrReport | CtrRecipe, directory: Path, name: str) -> None:
    (directory / name).write_text(json.dumps(asdict(content), indent=2) + "\n")
