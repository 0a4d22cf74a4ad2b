"""Train a click model on impressions joined with the features of ``ctr_v<N>``, and export it to ONNX with a parity certificate."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_model
from torch.nn import functional as F
from tqdm import tqdm

from moon_ops.ctr.dataset import Rows, Tables, batches, encode
from moon_ops.ctr.models import INPUTS, ClickModel, Sizes
from moon_ops.ctr.score import GRAPH, Scorer
from moon_ops.ctr.vocabulary import WORD_ROWS, Vocabulary
from moon_ops.encoder.export import quiet_exporter
from moon_ops.errors import ContractError, InputError
from moon_ops.recipes import CtrRecipe

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
    trained_from: str
    trained_until: str
    seed: int
    rows: int
    clicks: int
    parameters: int
    last_loss: float
    parity: float  # greatest difference of a probability, eager against exported


def train(
    joined: pa.Table,
    tables: Tables,
    out: Path,
    recipe: CtrRecipe,
    *,
    feature_service: str,
    trained_from: dt.datetime,
    trained_until: dt.datetime,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> CtrReport:
    """Train on ``joined`` impressions (see :mod:`moon_ops.ctr.dataset`) and write the model to the directory ``out`` in one step.

    Raises :class:`InputError` if the rows hold only one class or the loss stops being a number, :class:`ContractError` if the exported
    graph scores differently from the model.
    """
    vocabulary = Vocabulary.fit({name: joined[name] for name in joined.column_names})
    rows = encode(joined, vocabulary, tables, recipe.behaviors)
    clicks = int(rows.labels.sum())
    if not 0 < clicks < len(rows):
        raise InputError(
            f"label: {clicks} of {len(rows)} rows are clicks, so there is nothing to tell apart", action="bring impressions and clicks"
        )
    torch.manual_seed(seed)
    sizes = Sizes(
        vocabulary.sizes(), WORD_ROWS, recipe.embedding_dim, recipe.hidden, tables.items.vectors.shape[1], recipe.behaviors, recipe.dropout
    )
    model = ClickModel(sizes, recipe.extractor)
    with torch.no_grad():  # start at the mean click rate, not at one half
        model.predictor[-1].bias.fill_(math.log(clicks / (len(rows) - clicks)))  # type: ignore[operator]
    loss = _fit(model, rows, tables, recipe, seed, on_step)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ctr-", dir=out.parent) as scratch:
        fresh = Path(scratch) / "ctr"
        fresh.mkdir()
        save_model(model, str(fresh / "model.safetensors"))
        vocabulary.save(fresh)
        _export(model, rows, tables, fresh / GRAPH)
        report = CtrReport(
            recipe.name, recipe.extractor, tables.items.contract_id, feature_service, recipe.behaviors, trained_from.isoformat(),
            trained_until.isoformat(), seed, len(rows), clicks, sum(p.numel() for p in model.parameters()), loss, math.nan,
        )  # fmt: skip
        _write(report, fresh)
        report = CtrReport(**{**asdict(report), "parity": _parity(model, rows, tables, fresh)})
        _write(report, fresh)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return report


def _fit(
    model: ClickModel, rows: Rows, tables: Tables, recipe: CtrRecipe, seed: int, on_step: Callable[[int, dict[str, float]], None] | None
) -> float:
    """All epochs in a seeded order; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    generator = np.random.default_rng(seed)
    losses: list[float] = []
    model.train()
    with tqdm(total=recipe.epochs * len(rows), desc=f"train {recipe.name}", unit="row") as bar:
        for _ in range(recipe.epochs):
            for columns, labels in batches(rows, tables, recipe.batch, generator.permutation(len(rows))):
                loss = F.binary_cross_entropy_with_logits(model(*columns), labels)
                if not math.isfinite(loss.item()):
                    raise InputError(f"the click model's loss is {loss.item()} at step {len(losses)}", action="lower learning_rate")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                bar.update(len(labels))
                if on_step and len(losses) % 20 == 0:
                    on_step(len(losses), {"loss": losses[-1]})
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _export(model: ClickModel, rows: Rows, tables: Tables, path: Path) -> None:
    """One ONNX graph with a free number of rows; inputs that this extractor does not read are left out by the exporter."""
    columns, _ = next(batches(rows, tables, 4, np.arange(min(4, len(rows)))))
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in columns)
    with quiet_exporter():
        program = torch.onnx.export(
            model, columns, dynamo=True, dynamic_shapes=(free,), input_names=list(INPUTS), output_names=["logit"], verbose=False
        )
    assert program is not None, "dynamo=True always returns a program"
    program.save(path, external_data=False)


def _parity(model: ClickModel, rows: Rows, tables: Tables, directory: Path) -> float:
    """The greatest difference of a probability; :class:`ContractError` if it is above :data:`PARITY`."""
    chosen = np.arange(min(SAMPLE, len(rows)))
    columns, _ = next(batches(rows, tables, SAMPLE, chosen))
    with torch.no_grad():
        eager = torch.sigmoid(model(*columns)).numpy()
    difference = float(np.abs(eager - Scorer(directory).score(rows, tables)[: len(chosen)]).max())
    if not difference <= PARITY:  # NaN, too
        raise ContractError(
            f"the exported click model differs from the trained one by {difference:.2e}", action="report this model's recipe"
        )
    return difference


def _write(report: CtrReport, directory: Path) -> None:
    (directory / "ctr.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
