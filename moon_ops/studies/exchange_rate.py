"""The exchange rate: how much click model AUC a unit of the intermediate metric buys, over the encoders that are registered.

The click model's recipe, its seeds and all windows are fixed; only the encoder differs. The slope of AUC on image-search recall stands
beside that of rival metrics, overall and on new items, each with a 95 % interval (MOON Embedding, 2511.11305, section on the intermediate
metric; its value is not published).
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moon_ops.errors import StageError
from moon_ops.files import remembered, required, write_text
from moon_ops.metric_names import IMAGE_SEARCH, LOSS, TEXT_SEARCH, WITHIN_PRODUCT, recall
from moon_ops.publication import marks, places
from moon_ops.publication.brought import RECIPE as BROUGHT
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import CTR, ENCODER, Registry
from moon_ops.release import evaluation
from moon_ops.release.expected_gain import RECALL
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks as click_study
from moon_ops.studies import prediction_error, predictions
from moon_ops.studies.click_arms import ClickArm
from moon_ops.studies.prediction_error import Comparison, Error
from moon_ops.studies.predictions import Expected, Prediction

LEAST = 6  # encoders; fewer say nothing about a slope
RIVALS = (recall(IMAGE_SEARCH, 1), recall(TEXT_SEARCH), recall(WITHIN_PRODUCT), LOSS)
OUTCOMES = {"overall": "", "new items": "new_items"}


@dataclass(frozen=True)
class Point:
    """One encoder: its metrics, and the AUC of click models on it, of each seed, by slice."""

    encoder: int
    contract_id: str
    metrics: dict[str, float]
    aucs: dict[str, list[float]]
    recipe: str = ""

    def auc(self, outcome: str) -> float:
        """The mean over seeds."""
        return float(np.mean(self.aucs[outcome]))


@dataclass(frozen=True)
class Slope:
    """AUC per unit of a metric: a straight line by least squares over encoders, with a 95 % interval (t, n − 2), and R²."""

    metric: str
    outcome: str
    slope: float
    low: float
    high: float
    r2: float
    encoders: int


@dataclass(frozen=True)
class Rate:
    """One measurement: the lines, how far off they are on encoders that they have not seen, and which metrics differ in that."""

    slopes: list[Slope]
    errors: list[Error]
    comparisons: list[Comparison]


def measure(
    settings: Settings, arm: ClickArm, seeds: Sequence[int], windows: Windows, only: Sequence[int] = ()
) -> tuple[list[Point], dict[int, str]]:
    """A point for each registered encoder (or for ``only`` these), and why others are left out. What was measured before is read.

    Raises :class:`StageError` for fewer than :data:`LEAST` encoders.
    """
    chosen, left_out = _comparable(settings, windows, only)
    if len(chosen) < LEAST:
        raise StageError(
            f"{len(chosen)} encoders can be compared, and a slope needs {LEAST}" + "".join(f"; {v}: {why}" for v, why in left_out.items()),
            action="train more, e.g. `moon train --steps 50 --seed 1`, and export, embed and publish them",
        )
    return [_point(settings, encoder, arm, seeds, windows) for encoder in chosen], left_out


def _comparable(settings: Settings, windows: Windows, only: Sequence[int]) -> tuple[list[int], dict[int, str]]:
    """Encoders that know nothing of the window and are published; and the others, with the reason."""
    registry, chosen, left_out = Registry(settings), [], dict[int, str]()
    for version in range(1, (registry.newest(ENCODER) or 0) + 1):
        if only and version not in only:
            continue
        try:
            until = encoder_version(settings, version).trained_until
        except StageError:
            continue  # it was deleted
        if registry.tags(ENCODER, version).get("recipe") == BROUGHT:
            left_out[version] = "brought vectors: there is no model to measure recall with"
        elif until > windows.trained_until:
            left_out[version] = f"trained until {until:%Y-%m-%dT%H:%MZ}, into the window"
        elif not places.table_place(settings, "items", version).exists():
            left_out[version] = f"not published: `moon embed --encoder {version}`, `moon publish --encoder {version}`"
        else:
            chosen.append(version)
    return chosen, left_out


def _point(settings: Settings, encoder: int, arm: ClickArm, seeds: Sequence[int], windows: Windows) -> Point:
    about, found = encoder_version(settings, encoder), _metrics(settings, encoder, windows)
    judged = click_study.run(settings, encoder, [arm], seeds, windows)
    aucs = {label: judged.metric(arm.name, "auc", where) for label, where in OUTCOMES.items() if not where or judged.slices[where].any()}
    return Point(encoder, about.contract_id, found, aucs, about.recipe)


def _metrics(settings: Settings, encoder: int, windows: Windows) -> dict[str, float]:
    """Recall in the window and the last training loss; what was measured before is read."""
    contract = encoder_version(settings, encoder).contract_id
    key = f"{contract}-{windows.trained_until:%Y%m%d%H%M}-{windows.end:%Y%m%d%H%M}-{marks.lake_state(settings, encoder)}"
    place = settings.home / "studies" / "exchange-rate" / f"{key}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    found = remembered(place, "it is measured anew")
    if found is None:
        found, _ = evaluation.evaluate_parts(settings, encoder, windows)
        about = required(Registry(settings).fetch(ENCODER, encoder) / "training.json", "export the encoder again")
        found[LOSS] = float(about.get("last_loss", math.nan))
        write_text(place, json.dumps(found) + "\n")
    return found


def slopes(points: Sequence[Point]) -> list[Slope]:
    """Of every metric that all encoders have, and every outcome; image-search recall first."""
    if not np.ptp([p.metrics.get(RECALL, math.nan) for p in points]) > 0:  # NaN, too
        problem = f"the encoders do not differ in {RECALL}, or have none: nobody searched by picture in the window"
        raise StageError(problem, action="compare encoders that do")
    metrics = {name: [p.metrics.get(name, math.nan) for p in points] for name in (RECALL, *RIVALS)}
    names = [name for name, values in metrics.items() if np.isfinite(values).all() and np.ptp(values) > 0]
    outcomes = [label for label in OUTCOMES if all(np.isfinite(p.aucs.get(label, [math.nan])).all() for p in points)]
    if not outcomes:
        raise StageError("the click models have no AUC: the window has no clicks, or nothing else", action="judge on a longer window")
    return [_slope(points, name, outcome) for outcome in outcomes for name in names]


def rate(points: Sequence[Point]) -> Rate:
    """The lines of :func:`slopes`, their errors on encoders that are left out, and every metric's error beside that of recall."""
    lines, errors, comparisons = slopes(points), list[Error](), list[Comparison]()
    for outcome in dict.fromkeys(line.outcome for line in lines):
        metrics = {line.metric: _column(points, line.metric) for line in lines if line.outcome == outcome}
        y = np.array([p.auc(outcome) for p in points])
        errors += prediction_error.errors(metrics, y, outcome, [p.encoder for p in points], [p.recipe for p in points])
        comparisons += prediction_error.compared(metrics, y, outcome, RECALL)
    return Rate(lines, errors, comparisons)


def _column(points: Sequence[Point], metric: str) -> NDArray[np.float64]:
    return np.array([p.metrics[metric] for p in points])


def _slope(points: Sequence[Point], metric: str, outcome: str) -> Slope:
    x, y = _column(points, metric), np.array([p.auc(outcome) for p in points])
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(points) - 2) * line.stderr)
    return Slope(metric, outcome, float(line.slope), line.slope - half, line.slope + half, float(line.rvalue**2), len(points))


def terms(arm: ClickArm, seeds: Sequence[int], windows: Windows) -> dict[str, Any]:
    """On what AUC is measured, besides the encoder: predictions and findings are compared only where it is the same."""
    between = {
        "trained_until": windows.trained_until.isoformat(),
        "ctr_until": windows.ctr_until.isoformat(),
        "end": windows.end.isoformat(),
    }
    return {"recipe": arm.recipe, "changes": list(arm.changes), "seeds": list(seeds), **between}


def predict(settings: Settings, encoder: int, arm: ClickArm, seeds: Sequence[int], windows: Windows, *, now: dt.datetime) -> Prediction:
    """Write down which AUC the click models on an encoder will have, by the rate that was measured last and the encoder's own metrics.

    Raises :class:`StageError` where no rate was measured on these terms, and where the answer is known already.
    """
    content, on = remembered(predictions.place(settings), "it counts as never measured") or {}, terms(arm, seeds, windows)
    if content.get("terms") != on:
        problem = (
            "the exchange rate was not measured with this click recipe, these seeds and this time, on the events that the lake has now"
        )
        raise StageError(problem, action="run `moon exchange-rate` with the same options first, without this encoder")
    chosen, left_out = _comparable(settings, windows, [encoder])
    about = encoder_version(settings, encoder)
    if not chosen:
        raise StageError(f"encoder {encoder} cannot be compared: {left_out[encoder]}", action="predict for one that can")
    points = [Point(**p) for p in content["points"]]
    if any(p.contract_id == about.contract_id for p in points) or _has_click_model(settings, encoder, arm, seeds, windows):
        problem = f"encoder {encoder} has click models already: what is known is not predicted"
        raise StageError(problem, action="predict for an encoder before `moon ctr`, `moon release` and `moon exchange-rate` see it")
    found, expected = _metrics(settings, encoder, windows), []
    for line in content["slopes"]:
        name, outcome = line["metric"], line["outcome"]
        if math.isfinite(at := found.get(name, math.nan)):
            near = prediction_error.predicted(_column(points, name), np.array([p.auc(outcome) for p in points]), at)
            expected.append(Expected(name, outcome, at, near.value, near.low, near.high, near.outside))
    if not expected:
        raise StageError(f"encoder {encoder} has none of the rate's metrics", action="judge on a window in which somebody searched")
    made = now.astimezone(dt.UTC).isoformat(timespec="seconds")
    return predictions.add(settings, Prediction(encoder, about.contract_id, made, len(points), on, expected))


def _has_click_model(settings: Settings, encoder: int, arm: ClickArm, seeds: Sequence[int], windows: Windows) -> bool:
    registered = Registry(settings).entries(CTR).values()
    return any(tags.get("encoder") == str(encoder) for tags in registered) or click_study.begun(settings, encoder, arm, seeds, windows)
