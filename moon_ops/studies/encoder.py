"""Studies of the encoder: a small grid of recipes, several seeds each, logged to MLflow, with a table and figures.

Every run is trained from nothing on the same lake and measured on the same queries after ``trained_until``. Finished runs are kept in
``MOON_HOME/studies``, so a killed study goes on where it was; another recipe or another window is another study.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from moon_ops.errors import InputError
from moon_ops.metric_names import IMAGE_SEARCH, TEXT_SEARCH, VALIDATED, recall
from moon_ops.recipes.encoder import EncoderRecipe
from moon_ops.registry.registry import Registry
from moon_ops.release.runs import alone, tracked
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings
from moon_ops.studies.arms import FULL, Arm
from moon_ops.studies.measure import measure_eager

HEADLINE = recall(IMAGE_SEARCH)
# Raised when the same recipe learns or is judged otherwise: outcomes of before are another study's.
METHOD = 3  # 2: known answers are masked; 3: text is cut as it is served, warm-up is a fifth of a stage at most


@dataclass(frozen=True)
class Outcome:
    """One training run of one arm."""

    arm: str
    seed: int
    steps: int
    tokens: int  # text and picture tokens that the trunk read in training, both sides
    seconds: float
    metrics: dict[str, float]

    @property
    def headline(self) -> float:
        """Recall@10 of picture queries; not a number where none was asked."""
        return self.metrics.get(HEADLINE, math.nan)


def run(
    settings: Settings, name: str, full: EncoderRecipe, arms: Sequence[Arm], seeds: Sequence[int], windows: Windows, *, place: Path
) -> list[Outcome]:
    """Train and measure every arm with every seed; what ``place`` holds already is not done again. One MLflow run each."""
    from moon_ops.encoder.budget import Means
    from moon_ops.encoder.train import train

    place.parent.mkdir(parents=True, exist_ok=True)
    registry, means = Registry(settings), Means(None, settings.loaders, settings.picture_bytes)
    with alone(place.with_suffix(".lock"), f"the study {place.stem}"):
        outcomes = read(place)
        done = {(o.arm, o.seed) for o in outcomes}
        for seed, arm in ((seed, arm) for seed in seeds for arm in arms if (arm.name, seed) not in done):
            changed, out = arm.change(full), place.with_suffix("") / "run"
            params = {"arm": arm.name, "seed": seed, "recipe": full.name}
            with tracked(registry, f"{name}: {arm.name}", params, {"study": name}) as run_id:
                began = time.perf_counter()
                report = train(settings.lake, out, changed, trained_until=windows.trained_until, seed=seed, means=means)
                seconds = time.perf_counter() - began
                metrics = measure_eager(settings.lake, out, windows)
                metrics |= {VALIDATED: report.validation["best"]} if report.validation else {}
                registry.log(run_id, metrics | {"training_seconds": seconds, "training_tokens": float(report.tokens)})
            outcomes.append(Outcome(arm.name, seed, changed.steps, report.tokens, seconds, metrics))
            _append(place, outcomes[-1])
            shutil.rmtree(out)
    return outcomes


def place_of(settings: Settings, kind: str, full: EncoderRecipe, windows: Windows) -> Path:
    """Where the study ``kind`` of this very recipe, by this very :data:`METHOD` and judged on this very window, keeps its outcomes."""
    content = json.dumps([METHOD, asdict(full), windows.trained_until.isoformat(), windows.end.isoformat()], sort_keys=True)
    return settings.home / "studies" / f"{kind}-{full.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.jsonl"


def _append(place: Path, outcome: Outcome) -> None:
    """A line more; where a killed study left half of one, that is ended first."""
    torn = place.is_file() and not place.read_text().endswith("\n")
    with place.open("a") as lines:
        lines.write(("\n" if torn else "") + json.dumps(asdict(outcome)) + "\n")


def read(place: Path) -> list[Outcome]:
    """Outcomes of finished runs; a line that a killed study left half written is dropped."""
    out: list[Outcome] = []
    for line in place.read_text().splitlines() if place.is_file() else []:
        try:
            out.append(Outcome(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return out


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over seeds (Student's t); the half width of a single value is not a number."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def table(outcomes: Sequence[Outcome], arms: Sequence[str], reference: str) -> str:
    """A Markdown table: an arm a row, means over seeds, and the paired difference to ``reference`` with its 95 % interval."""
    known = {(o.arm, o.seed): o for o in outcomes}
    seeds = sorted({o.seed for o in outcomes})
    against = "full" if reference == FULL else reference
    head = f"| arm | R@1 | R@10 | difference to {against}, R@10 | helps? | pictures alone | texts alone | text search R@10 "
    head += "| million tokens | s |"
    lines = [head, "|" + "---|" * head.count(" | ") + "---|"]
    for arm in arms:
        rows = [known[arm, s] for s in seeds if (arm, s) in known]
        if not rows:
            continue
        both = [(known[arm, s], known[reference, s]) for s in seeds if (arm, s) in known and (reference, s) in known]
        shown = [mean_shown([o.metrics.get(name, math.nan) for o in rows]) for name in (recall(IMAGE_SEARCH, 1), HEADLINE)]
        rest = [
            mean_shown([o.metrics.get(name, math.nan) for o in rows])
            for name in (recall(IMAGE_SEARCH, 10, "picture_only"), recall(IMAGE_SEARCH, 10, "text_only"), recall(TEXT_SEARCH))
        ]
        gaps = [a.headline - b.headline for a, b in both]
        gap, verdict = ("", "") if arm == reference or not gaps else (mean_shown(gaps, signed=True), _verdict(arm, gaps))
        cost = [f"{np.mean([o.tokens for o in rows]) / 1e6:.2f}", f"{np.mean([o.seconds for o in rows]):.0f}"]
        lines.append("| " + " | ".join([arm, *shown, gap, verdict, *rest, *cost]) + " |")
    return "\n".join(lines) + "\n"


def _verdict(arm: str, gaps: Sequence[float]) -> str:
    """Whether the part that the arm adds or takes away helps; no answer where the interval holds zero."""
    mean, half = interval(gaps)
    if not arm.startswith(("+ ", "− ")) or arm.startswith("+ stage"):
        return ""
    if math.isnan(half) or abs(mean) <= half:
        return "not shown"
    return "yes" if (mean > 0) == arm.startswith("+ ") else "no, it hurts"


def mean_shown(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and 95 % interval over seeds, e.g. ``0.500 ± 0.020``; a dash where nothing was measured."""
    if all(math.isnan(v) for v in values):
        return "–"
    mean, half = interval(values)
    return f"{mean:+.3f} ± {half:.3f}" if signed else f"{mean:.3f} ± {half:.3f}"


def whole_seeds(text: str) -> list[int]:
    """Seeds from text, e.g. ``0,1,2``, each once; :class:`InputError` for fewer than two: one seed has no interval."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    seeds = list(dict.fromkeys(int(part) for part in parts if part.isdecimal()))
    if not all(part.isdecimal() for part in parts) or len(seeds) < 2:
        raise InputError(f"seeds = {text!r} must be at least two different whole numbers, with commas", action="give e.g. 0,1,2")
    return seeds
