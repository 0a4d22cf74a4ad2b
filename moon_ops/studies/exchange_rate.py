"""The exchange rate: how much click model AUC a unit of the intermediate metric buys, over the encoders that are registered.

The click model's recipe, its seeds and all windows are fixed; only the encoder differs. The slope of AUC on image-search recall stands
beside that of rival metrics, overall and on new items, each with a 95 % interval (MOON Embedding, 2511.11305, section on the intermediate
metric; its value is not published).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from moon_ops.errors import StageError
from moon_ops.files import remembered, required, write_text
from moon_ops.metric_names import IMAGE_SEARCH, LOSS, TEXT_SEARCH, WITHIN_PRODUCT, recall
from moon_ops.publication import marks, places
from moon_ops.publication.brought import RECIPE as BROUGHT
from moon_ops.registry.encoders import encoder_version
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.release import evaluation
from moon_ops.release.expected_gain import RECALL
from moon_ops.release.pictures import pyplot
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.studies import clicks as click_study
from moon_ops.studies.clicks import ClickArm

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
    judged = click_study.run(settings, encoder, [arm], seeds, windows)
    aucs = {label: judged.metric(arm.name, "auc", where) for label, where in OUTCOMES.items() if not where or judged.slices[where].any()}
    return Point(encoder, contract, found, aucs)


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


def _slope(points: Sequence[Point], metric: str, outcome: str) -> Slope:
    x = np.array([p.metrics[metric] for p in points])
    y = np.array([np.mean(p.aucs[outcome]) for p in points])
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(points) - 2) * line.stderr)
    return Slope(metric, outcome, float(line.slope), line.slope - half, line.slope + half, float(line.rvalue**2), len(points))


def table(found: Sequence[Slope]) -> str:
    """A Markdown table of AUC per 0.01 of each metric."""
    lines = ["| metric | outcome | AUC per +0.01 | 95 % interval | R² | zero excluded |", "|---|---|---|---|---|---|"]
    for s in found:
        excluded = "yes" if s.low > 0 or s.high < 0 else "no"
        lines.append(
            f"| {s.metric} | {s.outcome} | {s.slope / 100:+.5f} | [{s.low / 100:+.5f}, {s.high / 100:+.5f}] | {s.r2:.2f} | {excluded} |"
        )
    return "\n".join(lines) + "\n"


def keep(settings: Settings, points: Sequence[Point], found: Sequence[Slope], left_out: Mapping[int, str]) -> list[Path]:
    """Write ``MOON_HOME/exchange_rate.json``, the table and the scatter plot; where they are."""
    place = settings.home / "exchange_rate.json"
    content = {"slopes": [asdict(s) for s in found], "points": [asdict(p) for p in points], "left_out": dict(left_out)}
    write_text(place, json.dumps(content, indent=2) + "\n")
    written, drawn = place.with_suffix(".md"), place.with_suffix(".png")
    write_text(written, table(found))
    _scatter(points, [s for s in found if s.metric == RECALL], drawn)
    return [place, written, drawn]


def _scatter(points: Sequence[Point], found: Sequence[Slope], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3), layout="constrained", squeeze=False)
    x = np.array([p.metrics[RECALL] for p in points])
    for axis, slope in zip(axes[0], found, strict=True):
        y = np.array([np.mean(p.aucs[slope.outcome]) for p in points])
        spread = [np.ptp(p.aucs[slope.outcome]) / 2 for p in points]
        axis.errorbar(x, y, yerr=spread, fmt="o", color="#22915a", capsize=2)
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, y.mean() + slope.slope * (ends - x.mean()), color="#888888", lw=1)
        axis.set(xlabel=RECALL, ylabel=f"AUC, {slope.outcome}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
