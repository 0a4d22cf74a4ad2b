"""The stages, each over what the one before registered: the same functions for the command line, the DAGs, the demo and the tests.

A stage is given versions and times and gives back numbers; what is large lies in the lake, in Feast or in MLflow. It may be killed
anywhere and run again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moon_ops.ctr import dataset, metrics
from moon_ops.ctr import evaluate as ctr_evaluate
from moon_ops.ctr.score import Scorer
from moon_ops.embeddings import as_of, engines, features, produce
from moon_ops.embeddings.as_of import Joined
from moon_ops.embeddings.produce import EmbedReport
from moon_ops.embeddings.runtime import Runtime
from moon_ops.errors import InputError, StageError
from moon_ops.lake.contract import Contract, require_same
from moon_ops.recipes import CtrRecipe, EncoderRecipe, Gates, recipe
from moon_ops.release.registry import CTR, ENCODER, Registry
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings

if TYPE_CHECKING:
    from moon_ops.encoder.budget import Budget


@dataclass(frozen=True)
class Trained:
    """A checkpoint in ``MOON_HOME`` and the MLflow run that made it."""

    checkpoint: str
    run_id: str  # empty in all processes but the first
    last_loss: float


def train(
    settings: Settings,
    name: str,
    *,
    trained_until: dt.datetime,
    seed: int,
    steps: int | None = None,
    budget: Budget | None = None,
    **override: Any,
) -> Trained:
    """Train the encoder recipe ``name`` on behaviour before ``trained_until``; its figures go to MLflow while it runs.

    ``steps`` replaces the recipe's number, shared over its stages; a ``budget`` fits it to this machine. A run that was killed goes on
    where it was when it is called again with the same arguments, in the same MLflow run. Of several processes (``torchrun``) the first
    keeps lock and MLflow run.
    """
    from moon_ops.encoder.train import train as train_encoder

    if not 0 <= seed < 2**32:
        raise InputError(f"seed = {seed} must be from 0, below 2^32", action="give another number")
    chosen = recipe(EncoderRecipe, name, settings.models, **override)
    chosen = chosen if steps is None else chosen.with_steps(steps)
    if not chosen.steps:
        raise InputError("steps = 0: an encoder that has learned nothing is no release", action="train at least one step")
    params = {"recipe": name, "seed": seed, "trained_until": trained_until.isoformat(), **flat(chosen)}
    params |= {"minutes": budget.minutes} if budget and budget.minutes is not None else {}
    out = _checkpoint(settings, name, params)
    run = partial(train_encoder, settings.lake, out, chosen, trained_until=trained_until, seed=seed, budget=budget)
    if os.environ.get("RANK", "0") != "0":
        return Trained(str(out), "", run().last_loss)
    registry = Registry(settings)
    with _run_of(registry, out, f"train {name}", params) as run_id:
        report = run(on_step=partial(_log, registry, run_id))
        registry.log(run_id, {"steps": report.steps})
    return Trained(str(out), run_id, report.last_loss)


def _checkpoint(settings: Settings, name: str, params: dict[str, Any], suffix: str = "") -> Path:
    """Where the training of these settings writes to."""
    key = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()[:10]
    out = settings.home / "checkpoints" / f"{name}-{key}{suffix}"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def _run_of(registry: Registry, out: Path, name: str, params: dict[str, Any], tags: dict[str, str] | None = None) -> Iterator[str]:
    """The MLflow run of a training that nobody else runs now; one that was killed goes on in the run that it had."""
    note = out.with_name(f"{out.name}.run")
    with alone(out.with_name(f".{out.name}.lock"), f"'{name}'"):
        killed = note.read_text() if note.is_file() else None
        with tracked(registry, name, params, tags, resume=killed) as run_id:
            note.write_text(run_id)
            yield run_id
        note.unlink(missing_ok=True)


def flat(chosen: EncoderRecipe) -> dict[str, Any]:
    """The recipe's switches as MLflow parameters: ``training.batch``, ``stage2b.margin``, …"""
    out: dict[str, Any] = {}
    for key, value in asdict(chosen).items():
        out |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in out.items() if key != "name"}


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold ``lock``; :class:`StageError` if another call does."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise StageError(f"{what} with these very settings is running already", action="wait for it, or stop it") from taken
        yield


def export(settings: Settings, checkpoint: Path, variants: Sequence[str] = ()) -> int:
    """Export a checkpoint to ONNX, certify it, and register it as the next version of ``moon-encoder``.

    ``variants`` (``int8``, ``fp16``) are made beside it; each is judged on what users asked and bought before the encoder's training ended,
    and :class:`ContractError` refuses one that loses recall.
    """
    from moon_ops.encoder.export import export as export_encoder
    from moon_ops.encoder.variants import MAKERS, make_variant
    from moon_ops.release.golden import golden

    for variant in variants:
        if variant not in MAKERS:
            raise InputError(f"variant = {variant!r} is not one of {', '.join(MAKERS)}: nothing was made", action="name one of these")
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
    figures = {"parity/max_difference": certificate.max_difference, "parity/min_cosine": certificate.min_cosine}
    if variants:
        judged = golden(settings.lake, Contract.load(checkpoint).layout, dt.datetime.fromisoformat(trained["trained_until"]))
        for variant in variants:
            cost = make_variant(checkpoint, variant, golden=judged)
            figures |= {f"parity/{variant}_recall_loss": cost.recall_loss, f"parity/{variant}_rank_flips": float(cost.rank_flips)}
    with tracked(registry, f"export {trained['recipe']}", tags) as run_id:
        registry.log(run_id, figures)
        return registry.register(ENCODER, run_id, checkpoint, tags)


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


def trained_until(settings: Settings, encoder: int) -> dt.datetime:
    """The time from which on the encoder has seen no behaviour."""
    return dt.datetime.fromisoformat(Registry(settings).tags(ENCODER, encoder)["trained_until"])


def contract(settings: Settings, encoder: int) -> str:
    """The contract id that the encoder is registered with."""
    return Registry(settings).tags(ENCODER, encoder)["contract_id"]


def embed(settings: Settings, encoder: int, *, now: dt.datetime, engine: str = "local") -> tuple[EmbedReport, EmbedReport]:
    """Embed the items and the queries that have no vector yet under the encoder, on this machine or on a ``ray`` cluster."""
    opened = runtime(settings, encoder)
    chosen = engines.engine(engine, opened, partial(runtime, replace(settings, workers=1, items_token="", redis=""), encoder))
    items = produce.embed(settings.lake, opened, encoder, now=now, workers=settings.workers, engine=chosen)
    return items, produce.embed_queries(settings.lake, opened, encoder, now=now, workers=settings.workers, engine=chosen)


def train_ctr(
    settings: Settings, encoder: int, name: str, windows: Windows, *, seed: int, register: bool = True, **override: Any
) -> tuple[Path, int | None]:
    """Train the click recipe ``name`` on the features of ``ctr_v<encoder>``; its directory, and its ``moon-ctr`` version if registered."""
    from moon_ops.ctr.train import train as train_click_model

    chosen = recipe(CtrRecipe, name, settings.models, **override)
    registry, service = Registry(settings), features.service_name(encoder)
    params = {"recipe": name, "seed": seed, "encoder": encoder, **{k: v for k, v in asdict(chosen).items() if k != "name"}}
    params |= {"trained_from": windows.start.isoformat(), "trained_until": windows.ctr_until.isoformat()}
    out = _checkpoint(settings, name, params, "" if register else "-unregistered")  # studies remove theirs
    store = features.open_store(settings.home, settings.redis)
    features.require_behaviors(store, features.service(store, encoder), chosen.behaviors)
    joined, tables = impressions(settings, encoder, windows.start, windows.ctr_until), vectors_known(settings, encoder)
    times = {"trained_from": windows.start, "trained_until": windows.ctr_until}
    with _run_of(registry, out, f"ctr {name}", params, {"feast.feature_service": service, "feast.project": "moon"}) as run_id:
        hear = partial(_log, registry, run_id)
        report = train_click_model(joined, tables, out, chosen, feature_service=service, **times, seed=seed, on_step=hear)
        found = {"epochs": report.epochs, "validation_auc": report.validation_auc}
        registry.log(run_id, {name: value for name, value in found.items() if value is not None})
        if not register:
            return out, None
        tags = {"contract_id": report.contract_id, "encoder": str(encoder)}
        tags |= {"feast.feature_service": service, "trained_until": report.trained_until}
        return out, registry.register(CTR, run_id, out, tags)


def _log(registry: Registry, run_id: str, step: int, found: dict[str, float]) -> None:
    registry.log(run_id, found, step)


def impressions(settings: Settings, encoder: int, start: dt.datetime, end: dt.datetime) -> Joined:
    """Impressions in [start, end) joined with the features of Feast's service ``ctr_v<encoder>``, as known before each."""
    store = features.open_store(settings.home, settings.redis)
    return as_of.join(store, dataset.impressions(settings.lake, start, end), features.service(store, encoder))


def vectors_known(settings: Settings, encoder: int) -> dataset.Tables:
    """The vectors of all versions of items and queries, each with the time from which on it was valid."""
    store = features.open_store(settings.home, settings.redis)
    features.service(store, encoder)  # an encoder that was never published is an error that names the command
    views = (store.get_feature_view(f"{kind}_embedding_v{encoder}") for kind in ("item", "query"))
    return dataset.Tables(*(as_of.vectors(view) for view in views))


def evaluate_ctr(
    settings: Settings, encoder: int, model: Path, windows: Windows, *, baseline: Path | None = None, oracle: Path | None = None
) -> dict[str, float]:
    """Metrics of a click model on impressions after its training, beside the ID-only ``baseline`` and a simulated shop's oracle."""
    joined = impressions(settings, encoder, windows.ctr_until, windows.end)
    tables = vectors_known(settings, encoder)
    scored = ctr_evaluate.score(Scorer(model, threads=settings.workers), joined, tables, settings.lake, start=windows.ctr_until)
    out = {"ctr/rows": float(len(scored.rows)), "ctr/clicks": float(scored.rows.labels.sum()), **scored.metrics()}
    labels, users = scored.rows.labels, scored.rows.user_ids
    if baseline is not None:
        plain = ctr_evaluate.score(Scorer(baseline, threads=settings.workers), joined, tables, settings.lake, start=windows.ctr_until)
        out |= plain.metrics("_id_only")
        for name, rows in {"": np.ones(len(labels), bool), **scored.slices}.items():
            if f"ctr/auc:{name}" in out or not name:
                gain = metrics.auc_difference(labels[rows], [scored.scores[rows]], [plain.scores[rows]], users[rows], seed=0)
                suffix = f":{name}" if name else ""
                found = {"": gain.value, "_low": gain.low, "_high": gain.high, "_detectable": gain.detectable}
                out |= {f"ctr/auc_gain{what}{suffix}": value for what, value in found.items()}
    if oracle is not None and oracle.is_file():
        truth = ctr_evaluate.oracle(oracle, joined)
        known = np.isfinite(truth)
        if known.any():
            masks = {name: rows[known] for name, rows in scored.slices.items()}
            out |= metrics.report(labels[known], truth[known], users[known], masks, "_oracle")
    return out


@contextlib.contextmanager
def tracked(
    registry: Registry, name: str, params: dict[str, Any], tags: dict[str, str] | None = None, resume: str | None = None
) -> Iterator[str]:
    """An MLflow run that is closed as failed when its stage fails; ``resume`` names one to go on with."""
    run_id = resume if resume and registry.reopen(resume) else registry.start_run(name, params, tags)
    try:
        yield run_id
    except BaseException:
        registry.finish(run_id, failed=True)
        raise
    registry.finish(run_id)
