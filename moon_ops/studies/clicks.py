"""Studies of click models: a few recipes, several seeds each, on the same impressions, judged on the same later ones.

The scores of every finished run are kept in ``MOON_HOME/studies``, so a killed study goes on where it was, and differences are measured
between models that judged the same rows (paired, by user).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moon_ops.columns import together
from moon_ops.ctr import evaluate, metrics
from moon_ops.ctr.metrics import Difference
from moon_ops.ctr.score import Scorer
from moon_ops.ctr.vectors import Tables
from moon_ops.embeddings.as_of import Joined
from moon_ops.files import write
from moon_ops.metric_names import ctr
from moon_ops.publication import marks
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.registry.encoders import encoder_version
from moon_ops.release import clicks
from moon_ops.release.runs import alone
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.encoder import interval

SHOWN = ("", "new_items", "long_tail", "small_sellers")  # slices of the table


@dataclass(frozen=True)
class Judged:
    """What every run scored, on the same R impressions: scores [R] by arm and seed. Of a simulated shop also the oracle's: the chance of a
    click, and ``if_seen``, what it would be if the visitor looked at the item, wherever it stands."""

    labels: NDArray[np.int64]
    users: NDArray[np.int64]
    slices: dict[str, NDArray[np.bool_]]
    scores: dict[tuple[str, int], NDArray[np.float64]]
    oracle: NDArray[np.float64] | None = None
    if_seen: NDArray[np.float64] | None = None

    def metric(self, arm: str, name: str, where: str = "") -> list[float]:
        """One of the ``ctr/`` metrics of an arm, for each seed, in a slice (default: everywhere)."""
        rows = self.slices[where] if where else np.ones(len(self.labels), bool)
        found = [
            metrics.report(self.labels[rows], scores[rows], self.users[rows], {})
            for (known, _), scores in self.scores.items()
            if known == arm
        ]
        return [one[ctr(name)] for one in found]

    def auc_if_seen(self, arm: str) -> list[float]:
        """What the AUC of an arm would be, for each seed, if every item were looked at: the effect of the place is not in it."""
        assert self.if_seen is not None
        return [metrics.expected_auc(self.if_seen, scores) for (known, _), scores in self.scores.items() if known == arm]

    def difference(self, arm: str, other: str, where: str = "") -> Difference:
        """AUC of an arm minus that of another, the mean over the seeds that both have."""
        rows = self.slices[where] if where else np.ones(len(self.labels), bool)
        seeds = [seed for known, seed in self.scores if known == arm and (other, seed) in self.scores]
        left, right = ([self.scores[name, seed][rows] for seed in seeds] for name in (arm, other))
        return metrics.auc_difference(self.labels[rows], left, right, self.users[rows], seed=0)


def run(
    settings: Settings,
    encoder: int,
    arms: Sequence[ClickArm],
    seeds: Sequence[int],
    windows: Windows,
    *,
    oracle: Path | None = None,
    vectors: Mapping[str, Tables] | None = None,
) -> Judged:
    """Train and score every arm with every seed on the encoder's features; what was done before is read.

    ``vectors`` has, by arm, others than the encoder's own.
    """
    own = together(_recipe(settings, arm).own for arm in arms)
    joined, tables = clicks.impressions(settings, encoder, windows.ctr_until, windows.end, own), clicks.vectors_known(settings, encoder)
    scores: dict[tuple[str, int], NDArray[np.float64]] = {}
    labels, users = (joined.column(name).to_numpy() for name in ("label", "user_id"))
    state = marks.lake_state(settings, encoder)
    times = joined.column("event_timestamp").to_numpy()
    with alone(_directory(settings) / "click.lock", "a study of click models"):
        for seed, arm in ((seed, arm) for seed in seeds for arm in arms):
            given = arm.trainings(windows)
            parts = [_day(times, one) if arm.every else np.arange(len(times)) for one in given]
            scores[arm.name, seed] = np.empty(len(times))
            for one, rows in zip(given, parts, strict=True):
                others = (vectors or {}).get(arm.name)
                read = others or tables
                place = _place(settings, read.items.contract_id, arm, seed, replace(one, end=windows.end), state)
                if not place.is_file():
                    write(place, partial(_save, _scored(settings, encoder, arm, seed, one, (joined, read), others)))
                scores[arm.name, seed][rows] = np.load(place)[rows]
    names = ("click_probability", "attraction") if oracle is not None and oracle.is_file() else ()
    truth = [evaluate.oracle(oracle, joined, name) for name in names if oracle is not None]
    return Judged(labels, users, evaluate.slices(joined, settings.lake), scores, *truth)


def _scored(
    settings: Settings, encoder: int, arm: ClickArm, seed: int, windows: Windows, judged: tuple[Joined, Tables], others: Tables | None
) -> NDArray[np.float64]:
    """Train, on ``others`` or on the encoder's vectors as the recipe has them, and score what judges; the model itself is not kept."""
    changed: dict[str, Any] = {"changes": arm.changes, **arm.change}
    model, _ = clicks.train_ctr(settings, encoder, arm.recipe, windows, seed=seed, register=False, tables=others, **changed)
    scorer = Scorer(model, threads=settings.workers)
    found = scorer.score(scorer.encode(*judged))
    shutil.rmtree(model)
    return found


def _day(times: NDArray[Any], windows: Windows) -> NDArray[np.int64]:
    """Which rows lie in the judged time of a training."""
    start, end = (np.datetime64(when.astimezone(dt.UTC).replace(tzinfo=None), "us") for when in (windows.ctr_until, windows.end))
    return np.flatnonzero((times >= start) & (times < end))


def begun(settings: Settings, encoder: int, arm: ClickArm, seeds: Sequence[int], windows: Windows) -> bool:
    """Whether :func:`run` has the scores of one of the seeds already."""
    state, contract = marks.lake_state(settings, encoder), encoder_version(settings, encoder).contract_id
    return any(_place(settings, contract, arm, seed, windows, state).is_file() for seed in seeds)


def _save(scores: NDArray[np.float64], file: BinaryIO) -> None:
    np.save(file, scores)


def _recipe(settings: Settings, arm: ClickArm) -> CtrRecipe:
    return recipe(CtrRecipe, arm.recipe, settings.models, changes=arm.changes, **arm.change)


def _directory(settings: Settings) -> Path:
    place = settings.home / "studies" / "click"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _place(settings: Settings, contract: str, arm: ClickArm, seed: int, windows: Windows, state: str) -> Path:
    """Where the scores of a run lie: other recipes, vectors and windows are other runs, and so is one after an erasure or late events."""
    made = asdict(_recipe(settings, arm))
    content = [made, contract, seed, state, *map(_text, asdict(windows).values())]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return _directory(settings) / f"{arm.recipe}-{key}.npy"


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat()


def table(judged: Judged, arms: Sequence[ClickArm], reference: str) -> str:
    """A Markdown table: a model a row, means over seeds, and differences to ``reference`` with 95 % intervals, overall and by slice."""
    shown = [where for where in SHOWN if not where or _enough(judged, where)]
    seen = ["AUC if all were seen"] if judged.if_seen is not None else []
    heads = [
        "model",
        "AUC",
        "GAUC",
        "log loss",
        "calibration",
        *seen,
        *(f"Δ AUC {where.replace('_', ' ') or 'overall'}" for where in shown),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm in arms:
        cells = [arm.name, *(_mean(judged.metric(arm.name, name)) for name in ("auc", "gauc", "logloss", "calibration"))]
        cells += [_mean(judged.auc_if_seen(arm.name))] if seen else []
        cells += ["" if arm.name == reference else _gap(judged.difference(arm.name, reference, where)) for where in shown]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for where in shown:
        base = float(np.mean(judged.metric(reference, "auc", where)))
        rows = judged.slices[where] if where else np.ones(len(judged.labels), bool)
        known = rows if judged.oracle is None else rows & np.isfinite(judged.oracle)
        ceiling = "" if judged.oracle is None else f", the oracle {metrics.auc(judged.labels[known], judged.oracle[known]):.4f}"
        count = f"{int(rows.sum()):,} impressions, {int(judged.labels[rows].sum()):,} clicks"
        lines.append(f"- {where.replace('_', ' ') or 'overall'}: {reference} {base:.4f}{ceiling}; {count}")
    return "\n".join(lines) + "\n"


def strongest(judged: Judged, names: Sequence[str]) -> str:
    """The arm with the highest mean AUC. Chosen on the judged rows, so it is rather too strong a rival than too weak."""
    return max(names, key=lambda name: float(np.mean(judged.metric(name, "auc"))))


def _enough(judged: Judged, where: str) -> bool:
    clicks = int(judged.labels[judged.slices[where]].sum())
    return min(clicks, int(judged.slices[where].sum()) - clicks) >= metrics.LEAST


def _mean(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.4f} ± {half:.4f}"


def _gap(found: Difference) -> str:
    verdict = "" if found.verdict in ("better", "worse") else f", {found.verdict} (≥ {found.detectable:.4f} would be seen)"
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]{verdict}"
