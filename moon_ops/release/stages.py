"""The stages, each over what the one before registered: the same functions for the command line, the DAGs, the demo and the tests.

A stage is given versions and times and gives back numbers; what is large lies in the lake, in Feast or in MLflow. It may be killed
anywhere and run again.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moon_ops.embeddings import engines, produce
from moon_ops.embeddings.produce import EmbedReport
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import InputError, MoonError, StageError
from moon_ops.inputs.contract import Contract, file_sha256, require_same
from moon_ops.metric_names import PARAMETERS, TRAINED, recall_loss
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.recipes.gates import Gates
from moon_ops.recipes.reading import recipe
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release.runs import flat, log_step, place_of, run_of, tracked
from moon_ops.settings import VARIANTS, Settings
from moon_ops.telemetry.stages import stage

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from moon_ops.encoder.budget import Budget


@dataclass(frozen=True)
class Trained:
    """A checkpoint in ``MOON_HOME`` and the MLflow run that made it."""

    checkpoint: str
    run_id: str  # empty in all processes but the first
    last_loss: float
    pairs: int = 0  # of query and item that it learned from
    left_out: dict[str, int] = field(default_factory=dict)  # events and pairs beyond a cap of the recipe, and undone purchases


@stage("train")
def train(
    settings: Settings,
    name: str,
    *,
    trained_until: dt.datetime,
    seed: int,
    steps: int | None = None,
    budget: Budget | None = None,
    changes: Sequence[str] = (),
    **override: Any,
) -> Trained:
    """Train the encoder recipe ``name`` on behaviour before ``trained_until``; its figures go to MLflow while it runs.

    ``changes`` are made in the recipe, as in ``training.batch=256``; ``steps`` replaces its number, shared over its stages; a ``budget``
    fits it to this machine. A run that was killed goes on where it was when it is called again with the same arguments, in the same MLflow
    run. Of several processes (``torchrun``) the first keeps lock and MLflow run.
    """
    from moon_ops.encoder.budget import Means
    from moon_ops.encoder.train import train as train_encoder

    if not 0 <= seed < 2**32:
        raise InputError(f"seed = {seed} must be from 0, below 2^32", action="give another number")
    chosen = recipe(EncoderRecipe, name, settings.models, changes=changes, **override)
    chosen = chosen if steps is None else chosen.with_steps(steps)
    if not chosen.steps:
        raise InputError("steps = 0: an encoder that has learned nothing is no release", action="train at least one step")
    params = {"recipe": name, "seed": seed, "trained_until": trained_until.isoformat(), **flat(chosen)}
    params |= {"minutes": budget.minutes} if budget and budget.minutes is not None else {}
    out, means = place_of(settings, name, params), Means(budget, settings.loaders, settings.picture_bytes, settings.deal)
    run = partial(train_encoder, settings.lake, out, chosen, trained_until=trained_until, seed=seed, means=means)
    if os.environ.get("RANK", "0") != "0":
        return Trained(str(out), "", run().last_loss)
    registry = Registry(settings)
    with run_of(registry, out, f"train {name}", params) as run_id:
        report = run(on_step=partial(log_step, registry, run_id))
        sizes = {PARAMETERS: report.parameters, TRAINED: report.trained}
        registry.log(
            run_id, {"steps": report.steps, **sizes, **{f"left_out/{name}": float(count) for name, count in report.left_out.items()}}
        )
    return Trained(str(out), run_id, report.last_loss, report.pairs, report.left_out)


@dataclass(frozen=True)
class Exported:
    """The version of ``moon-encoder`` that a checkpoint is; ``before``: it was registered by an earlier export of the same content."""

    encoder: int
    before: bool = False


@stage("export")
def export(settings: Settings, checkpoint: Path, variants: Sequence[str] = ()) -> Exported:
    """Export a checkpoint to ONNX, certify it, and register it as the next version of ``moon-encoder``, unless it is one already: what has
    the same weights, graphs and contract would be embedded again for nothing.

    ``variants`` (``int8``, ``fp16``), and the one that the settings serve, are made beside it; each is judged on what users asked and
    bought before the encoder's training ended, and :class:`ContractError` refuses one that loses recall.
    """
    from moon_ops.encoder.export import export as export_encoder
    from moon_ops.encoder.variants import MAKERS, exported_loss, make_variant
    from moon_ops.release.golden import EXPORTED, golden

    variants = _wanted(settings, variants, MAKERS)
    trained, gates = _training(checkpoint), recipe(Gates, "gates", settings.models)
    certificate = export_encoder(checkpoint, parity_floor=gates.parity_floor)
    registry = Registry(settings)
    tags = {
        "contract_id": certificate.contract_id,
        "trained_until": trained["trained_until"],
        "recipe": trained["recipe"],
        "seed": str(trained["seed"]),
        "parity_cosine": f"{certificate.min_cosine:.9f}",
    }
    if (known := _registered(registry, tags, variants)) is not None:
        return Exported(known, before=True)
    figures = {"parity/max_difference": certificate.max_difference, "parity/min_cosine": certificate.min_cosine}
    layout, until = Contract.load(checkpoint).layout, dt.datetime.fromisoformat(trained["trained_until"])
    few, shown = EXPORTED
    lost = exported_loss(checkpoint, golden(settings.lake, layout, until, queries=few, items=shown))
    if lost is not None:
        figures[recall_loss(VARIANTS[0])] = lost
        tags["parity_recall_loss"] = f"{lost:.9f}"
    if variants:
        judged = golden(settings.lake, layout, until)
        for variant in variants:
            cost = make_variant(checkpoint, variant, golden=judged)
            figures |= {recall_loss(variant): cost.recall_loss, f"parity/{variant}_rank_flips": float(cost.rank_flips)}
    with tracked(registry, f"export {trained['recipe']}", tags) as run_id:
        registry.log(run_id, figures)
        return Exported(registry.register(ENCODER, run_id, checkpoint, tags))


def _wanted(settings: Settings, named: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The variants to make: those that are named, and the one that the settings serve; :class:`InputError` for one that nobody makes."""
    served = () if settings.variant == VARIANTS[0] else (settings.variant,)
    variants = tuple(dict.fromkeys((*named, *served)))
    for variant in variants:
        if variant not in known:
            raise InputError(f"variant = {variant!r} is not one of {', '.join(known)}: nothing was made", action="name one of these")
    return variants


def _registered(registry: Registry, tags: dict[str, str], variants: Sequence[str]) -> int | None:
    """The newest version with the same contract from the same training, which has all the ``variants``."""
    for version, known in sorted(registry.entries(ENCODER).items(), reverse=True):
        same = all(known.get(name) == tags[name] for name in ("contract_id", "trained_until", "recipe", "seed"))
        if same and _whole(registry.fetch(ENCODER, version), variants):
            log.info("the checkpoint is %s %d already: nothing is registered", ENCODER, version)
            return version
    return None


def _whole(directory: Path, variants: Sequence[str]) -> bool:
    """Whether an encoder's files are what its contract says, and all the ``variants`` are among them."""
    try:
        contract = Contract.load(directory)
        wanted = {**contract.graphs, "model.safetensors": contract.weights, "tokenizer.json": contract.tokenizer}
        same = all(file_sha256(directory / name) == sha256 for name, sha256 in wanted.items())
    except (MoonError, OSError):
        return False
    return same and all((directory / f"certificate.{variant}.json").is_file() for variant in variants)


def _training(checkpoint: Path) -> dict[str, Any]:
    """What ``moon train`` wrote about the checkpoint, last; :class:`StageError` for a directory that it did not finish."""
    try:
        trained = json.loads((checkpoint / "training.json").read_text())
        complete = {"trained_until", "recipe", "seed"} <= set(trained) and (checkpoint / "model.safetensors").is_file()
    except (OSError, ValueError, TypeError):
        complete = False
    if not complete:
        raise StageError(f"{checkpoint} is not a trained checkpoint", action="name the directory that `moon train` printed")
    return dict(trained)


def runtime(settings: Settings, encoder: int) -> Runtime:
    """The exported encoder in the variant of the settings, ready to embed; checked against the contract it is registered with."""
    registry = Registry(settings)
    opened = Runtime(registry.fetch(ENCODER, encoder), threads=settings.workers, variant=settings.variant)
    require_same(registry.tags(ENCODER, encoder)["contract_id"], opened.contract_id, what=f"{ENCODER} {encoder}")
    return opened


@stage("embed", "items", "queries")
def embed(settings: Settings, encoder: int, *, now: dt.datetime) -> tuple[EmbedReport, EmbedReport]:
    """Embed the items and the queries that have no vector yet under the encoder, on the engine of the settings."""
    opened = runtime(settings, encoder)
    secrets = ("items_token", "webhook_secret", "redis", "feast_registry", "locks")  # of which a worker of a cluster needs none
    theirs = settings.replace(workers=1, **dict.fromkeys(secrets, ""))
    chosen = engines.engine(settings.engine, opened, partial(runtime, theirs, encoder))
    items = produce.embed(settings.lake, opened, encoder, now=now, workers=settings.workers, engine=chosen)
    return items, produce.embed_queries(settings.lake, opened, encoder, now=now, workers=settings.workers, engine=chosen)


def refresh(settings: Settings, encoder: int, *, now: dt.datetime) -> None:
    """Bring an encoder's vectors up to date: embed what has none, and hand it over. Before an old release is served again."""
    from moon_ops.publication import publication

    embed(settings, encoder, now=now)
    publication.publish(settings, encoder, now=now)
