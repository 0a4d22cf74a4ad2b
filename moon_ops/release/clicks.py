"""The click model's stages: impressions through Feast, training, and what it is worth on what came after."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moon_ops.columns import Feature, together
from moon_ops.ctr import alignment, evaluate, metrics
from moon_ops.ctr import impressions as shown
from moon_ops.ctr.alignment import Alignment
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings import as_of, features
from moon_ops.embeddings.as_of import Joined
from moon_ops.metric_names import GAIN, ID_ONLY, ORACLE, ctr
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.reading import caps, recipe
from moon_ops.registry.registry import CTR, Registry
from moon_ops.release.runs import flat, log_step, place_of, run_of
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.telemetry.stages import stage


@stage("ctr", "", "ctr")
def train_ctr(
    settings: Settings,
    encoder: int,
    name: str,
    windows: Windows,
    *,
    seed: int,
    register: bool = True,
    changes: Sequence[str] = (),
    tables: Tables | None = None,
    **override: Any,
) -> tuple[Path, int | None]:
    """Train the click recipe ``name`` on ``ctr_v<encoder>``, or on other ``tables``; its directory, and its version if registered.

    Of several processes (``torchrun``) the first keeps lock and MLflow run, and registers.
    """
    from moon_ops.ctr.train import Origin, train_on
    from moon_ops.release import click_rows

    chosen = recipe(CtrRecipe, name, settings.models, changes=changes, **override)
    params = {"recipe": name, "seed": seed, "encoder": encoder, **flat(chosen)}
    params |= {"trained_from": windows.start.isoformat(), "trained_until": windows.ctr_until.isoformat()}
    params |= {"vectors": tables.items.contract_id} if tables is not None else {}
    out = place_of(settings, name, params, "" if register else "-unregistered")  # studies remove theirs
    origin = Origin(features.service_name(encoder), windows.start, windows.ctr_until)
    rows = click_rows.source(settings, encoder, chosen, (windows.start, windows.ctr_until), tables)
    run = partial(train_on, rows, out, chosen, origin=origin, seed=seed)
    if os.environ.get("RANK", "0") != "0":
        run()
        return out, None
    registry, service = Registry(settings), origin.feature_service
    with run_of(registry, out, f"ctr {name}", params, {"feast.feature_service": service, "feast.project": "moon"}) as run_id:
        report = run(on_step=partial(log_step, registry, run_id))
        found = {"epochs": report.epochs, "validation_auc": report.validation_auc, **{f"events/{n}": c for n, c in report.events.items()}}
        registry.log(run_id, {name: value for name, value in found.items() if value is not None})
        if not register:
            return out, None
        tags = {"contract_id": report.contract_id, "encoder": str(encoder)}
        tags |= {"feast.feature_service": service, "trained_until": report.trained_until}
        return out, registry.register(CTR, run_id, out, tags)


def impressions(settings: Settings, encoder: int, start: dt.datetime, end: dt.datetime, own: Sequence[Feature] = ()) -> Joined:
    """Impressions in [start, end) joined with the features of Feast's service ``ctr_v<encoder>``, as known before each; within the shop's
    caps (``counting.toml``), not those of a recipe: what judges is the same for all models.
    """
    store = features.open_store(settings)
    rows = shown.impressions(settings.lake, start, end, own, rule=caps(settings.models))
    return as_of.join(store, rows, features.service(store, encoder))


def vectors_known(
    settings: Settings, encoder: int, between: tuple[dt.datetime, dt.datetime] | None = None, kind: str = "float32"
) -> Tables:
    """The vectors of all versions of items and queries, each with the time from which on it was valid; see :func:`.as_of.vectors`."""
    store = features.open_store(settings)
    features.service(store, encoder)  # an encoder that was never published is an error that names the command
    views = (store.get_feature_view(f"{of}_embedding_v{encoder}") for of in ("item", "query"))
    return Tables(*(as_of.vectors(view, between, kind) for view in views))


def evaluate_ctr(
    settings: Settings, encoder: int, model: Path, windows: Windows, *, baseline: Path | None = None, oracle: Path | None = None
) -> dict[str, float]:
    """Metrics of a click model on impressions after its training, beside the ID-only ``baseline`` and a simulated shop's oracle."""
    return judged_ctr(settings, encoder, model, windows, baseline=baseline, oracle=oracle)[0]


def judged_ctr(
    settings: Settings,
    encoder: int,
    model: Path,
    windows: Windows,
    *,
    baseline: Path | None = None,
    oracle: Path | None = None,
    through: Alignment | None = None,
) -> tuple[dict[str, float], evaluate.Scored]:
    """:func:`evaluate_ctr`, and the scores that it counts; ``through`` a map, if the model is of another encoder."""
    scorer, tables = Scorer(model, threads=settings.workers), alignment.through(vectors_known(settings, encoder), through)
    beside = Scorer(baseline, threads=settings.workers) if baseline is not None else None
    own = together(one.own for one in (scorer, beside) if one is not None)
    joined = impressions(settings, encoder, windows.ctr_until, windows.end, own)
    scored = evaluate.score(scorer, joined, tables, settings.lake, start=windows.ctr_until)
    out = {ctr("rows"): float(len(scored.rows)), ctr("clicks"): float(scored.rows.labels.sum()), **scored.metrics()}
    labels, users = scored.rows.labels, scored.rows.user_ids
    if beside is not None:
        plain = evaluate.score(beside, joined, tables, settings.lake, start=windows.ctr_until)
        out |= plain.metrics(ID_ONLY)
        for name, rows in {"": np.ones(len(labels), bool), **scored.slices}.items():
            if ctr("auc", name) in out or not name:
                gain = metrics.auc_difference(labels[rows], [scored.scores[rows]], [plain.scores[rows]], users[rows], seed=0)
                found = {"": gain.value, "_low": gain.low, "_high": gain.high, "_detectable": gain.detectable}
                out |= {ctr("auc", name, GAIN + what): value for what, value in found.items()}
    if oracle is not None and oracle.is_file():
        truth = evaluate.oracle(oracle, joined)
        known = np.isfinite(truth)
        if known.any():
            masks = {name: rows[known] for name, rows in scored.slices.items()}
            out |= metrics.report(labels[known], truth[known], users[known], masks, ORACLE)
    return out, scored
