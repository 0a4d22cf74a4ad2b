"""Studies of the encoder: a small grid of recipes, several seeds each, logged to MLflow, with a table and figures.

Every run is trained from nothing on the same lake and measured on the same queries after ``trained_until``. Finished runs are kept in
``MOON_HOME/studies``, so a killed study goes on where it was.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from moon_ops.errors import InputError
from moon_ops.recipes import EncoderRecipe, Stage1, Stage2a, Stage2b
from moon_ops.release.evaluation import measure_eager
from moon_ops.release.registry import Registry
from moon_ops.release.windows import Windows
from moon_ops.settings import Settings

Change = Callable[[EncoderRecipe], EncoderRecipe]
HEADLINE = "image_search/recall@10"
FULL = "+ stage 2b (full)"


@dataclass(frozen=True)
class Arm:
    """One column of a study: a name, and what it changes in the full recipe."""

    name: str
    change: Change


@dataclass(frozen=True)
class Outcome:
    """One training run of one arm."""

    arm: str
    seed: int
    steps: int
    tokens: int  # text and picture tokens that the trunk read in training, both sides
    seconds: float
    metrics: dict[str, float]


PAPER_SHARES = {  # of 2.6 billion pairs (MOON, table of stage 2a)
    "text:rich": 0.2,
    "text:image": 0.2,
    "text:title+image": 0.2,
    "text:rich+image": 0.5,
    "image:image": 0.2,
    "image:title+image": 0.5,
    "image:rich+image": 0.2,
    "title+image:title+image": 0.5,
    "rich+image:rich+image": 0.1,
}


def ablation(full: EncoderRecipe) -> list[Arm]:
    """Untrained, the stages one after another, the full recipe minus each of its parts, and plus each part that it leaves out."""
    ladder = [
        Arm("untrained", lambda r: _stages(r, 0, 0, 0)),
        Arm("+ stage 1", lambda r: _stages(r, r.stage1.steps, 0, 0)),
        Arm("+ stage 2a", lambda r: _stages(r, r.stage1.steps, r.stage2a.steps, 0)),
        Arm(FULL, lambda r: r),
    ]
    return ladder + [Arm(f"{'−' if _used(full, part) else '+'} {part}", _toggled(part, full)) for part in PARTS]


# Each part: is it in the recipe, the recipe without it, the recipe with it.
PARTS: dict[str, tuple[Callable[[EncoderRecipe], bool], Change, Change]] = {
    "stage 1": (lambda r: r.stage1.steps > 0, lambda r: _with(r, "stage1", steps=0), lambda r: r),
    "stage 2a": (lambda r: r.stage2a.steps > 0, lambda r: _with(r, "stage2a", steps=0), lambda r: r),
    "steps of 2b given to 2a": (
        lambda _: False,
        lambda r: r,
        lambda r: _stages(r, r.stage1.steps, r.stage2a.steps + r.stage2b.steps, 0),
    ),
    "clicks and carts": (
        lambda r: r.stage2a.events != ("purchase",),
        lambda r: _with(r, "stage2a", events=("purchase",)),
        lambda r: _with(r, "stage2a", events=("click", "cart", "purchase")),
    ),
    "pair types": (
        lambda r: bool(r.stage2a.pairs),
        lambda r: _with(r, "stage2a", pairs={}),
        lambda r: _with(r, "stage2a", pairs=PAPER_SHARES),
    ),
    "MIM's three levels": (
        lambda r: r.stage2a.loss == "mim",
        lambda r: _with(r, "stage2a", loss="info_nce"),
        lambda r: _with(r, "stage2a", loss="mim"),
    ),
    "within-product alignment": (
        lambda r: r.stage2a.within_product > 0,
        lambda r: _with(r, "stage2a", within_product=0.0),
        lambda r: _with(r, "stage2a", within_product=0.5),
    ),
    "photographs made of item pictures": (
        lambda r: r.training.synthetic > 0,
        lambda r: _with(r, "training", synthetic=0.0),
        lambda r: _with(r, "training", synthetic=0.5),
    ),
    "other backdrops": (
        lambda r: r.training.backdrops,
        lambda r: _with(r, "training", backdrops=False),
        lambda r: _with(r, "training", backdrops=True),
    ),
    "augmentation": (
        lambda r: r.training.augment,
        lambda r: _with(r, "training", augment=False, synthetic=0.0),
        lambda r: _with(r, "training", augment=True),
    ),
    "text dropout": (
        lambda r: r.training.text_dropout > 0,
        lambda r: _with(r, "training", text_dropout=0.0),
        lambda r: _with(r, "training", text_dropout=0.3),
    ),
    "Matryoshka": (
        lambda r: bool(r.training.prefixes),
        lambda r: _with(r, "training", prefixes=()),
        lambda r: _with(r, "training", prefixes=(int(r.text["hidden_size"]) // 4, int(r.text["hidden_size"]) // 2)),
    ),
    "least similar query": (
        lambda r: r.stage2b.least_similar,
        lambda r: _with(r, "stage2b", least_similar=False),
        lambda r: _with(r, "stage2b", least_similar=True),
    ),
    "SPU merge": (
        lambda r: r.stage2b.spu_merge,
        lambda r: _with(r, "stage2b", spu_merge=False),
        lambda r: _with(r, "stage2b", spu_merge=True),
    ),
    "category balance": (
        lambda r: r.stage2b.category_balance,
        lambda r: _with(r, "stage2b", category_balance=False),
        lambda r: _with(r, "stage2b", category_balance=True),
    ),
    "entity filter": (
        lambda r: r.stage2b.least_entities > 0,
        lambda r: _with(r, "stage2b", least_entities=0),
        lambda r: _with(r, "stage2b", least_entities=2),
    ),
    "hard negatives": (
        lambda r: r.stage2b.hard_negatives > 0,
        lambda r: _with(r, "stage2b", hard_negatives=0),
        lambda r: _with(r, "stage2b", hard_negatives=1),
    ),
    "queue": (lambda r: r.stage2b.queue > 0, lambda r: _with(r, "stage2b", queue=0), lambda r: _with(r, "stage2b", queue=1024)),
    "circle loss": (
        lambda r: r.stage2b.loss == "circle",
        lambda r: _with(r, "stage2b", loss="info_nce"),
        lambda r: _with(r, "stage2b", loss="circle"),
    ),
    "core region": (
        lambda r: bool(r.inputs.core_region),
        lambda r: _with(r, "inputs", core_region=""),
        lambda r: _with(r, "inputs", core_region="saliency"),
    ),
    "experts": (lambda r: r.experts is not None, lambda r: replace(r, experts=None), lambda r: replace(r, experts=_experts())),
}


def scaling(full: EncoderRecipe) -> list[Arm]:
    """Training tokens (steps of all stages together) and negatives (pairs per step, at the same number of pairs in all)."""
    by_tokens = [Arm(f"tokens x {share:g}", _share(share)) for share in (0.125, 0.25, 0.5, 1.0, 2.0)]
    by_negatives = [Arm(f"negatives {size - 1}", _batch(size)) for size in (8, 16, 32, 64, 128, 256) if size <= 4 * full.training.batch]
    return by_tokens + by_negatives


def run(
    settings: Settings, name: str, full: EncoderRecipe, arms: Sequence[Arm], seeds: Sequence[int], windows: Windows, *, place: Path
) -> list[Outcome]:
    """Train and measure every arm with every seed; what ``place`` holds already is not done again. One MLflow run each."""
    from moon_ops.encoder.train import train

    place.parent.mkdir(parents=True, exist_ok=True)
    registry = Registry(settings)
    outcomes = read(place)
    done = {(o.arm, o.seed) for o in outcomes}
    for seed in seeds:
        for arm in arms:
            if (arm.name, seed) in done:
                continue
            changed = arm.change(full)
            out = place.with_suffix("") / "run"
            run_id = registry.start_run(f"{name}: {arm.name}", {"arm": arm.name, "seed": seed, "recipe": full.name}, {"study": name})
            began = time.perf_counter()
            report = train(settings.lake, out, changed, trained_until=windows.trained_until, seed=seed)
            seconds = time.perf_counter() - began
            metrics = measure_eager(settings.lake, out, windows)
            shutil.rmtree(out)
            outcome = Outcome(arm.name, seed, changed.steps, report.tokens, seconds, metrics)
            registry.log(run_id, metrics | {"training_seconds": seconds, "training_tokens": float(report.tokens)})
            registry.finish(run_id)
            outcomes.append(outcome)
            with place.open("a") as lines:
                lines.write(json.dumps(asdict(outcome)) + "\n")
    return outcomes


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
    head = "| arm | R@1 | R@10 | difference to full, R@10 | helps? | pictures alone | texts alone | text search R@10 | s |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for arm in arms:
        rows = [known[arm, s] for s in seeds if (arm, s) in known]
        if not rows:
            continue
        both = [(known[arm, s], known[reference, s]) for s in seeds if (arm, s) in known and (reference, s) in known]
        shown = [_shown([o.metrics.get(name, math.nan) for o in rows]) for name in ("image_search/recall@1", HEADLINE)]
        rest = [
            _shown([o.metrics.get(name, math.nan) for o in rows])
            for name in (f"{HEADLINE}:picture_only", f"{HEADLINE}:text_only", "text_search/recall@10")
        ]
        gaps = [a.metrics[HEADLINE] - b.metrics[HEADLINE] for a, b in both]
        gap, verdict = ("", "") if arm == reference or not gaps else (_shown(gaps, signed=True), _verdict(arm, gaps))
        lines.append("| " + " | ".join([arm, *shown, gap, verdict, *rest, f"{np.mean([o.seconds for o in rows]):.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def _verdict(arm: str, gaps: Sequence[float]) -> str:
    """Whether the part that the arm adds or takes away helps; no answer where the interval holds zero."""
    mean, half = interval(gaps)
    if not arm.startswith(("+ ", "− ")) or arm.startswith("+ stage"):
        return ""
    if math.isnan(half) or abs(mean) <= half:
        return "not shown"
    return "yes" if (mean > 0) == arm.startswith("+ ") else "no, it hurts"


def _shown(values: Sequence[float], *, signed: bool = False) -> str:
    if all(math.isnan(v) for v in values):
        return "–"
    mean, half = interval(values)
    return f"{mean:+.3f} ± {half:.3f}" if signed else f"{mean:.3f} ± {half:.3f}"


def whole_seeds(text: str) -> list[int]:
    """Seeds from text, e.g. ``0,1,2``; :class:`InputError` for fewer than two: one seed has no interval."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < 2:
        raise InputError(f"seeds = {text!r} must be at least two different whole numbers, with commas", action="give e.g. 0,1,2")
    return [int(part) for part in parts]


def _used(full: EncoderRecipe, part: str) -> bool:
    return PARTS[part][0](full)


def _toggled(part: str, full: EncoderRecipe) -> Change:
    used, without, with_it = PARTS[part]
    return without if used(full) else with_it


def _with(recipe: EncoderRecipe, table: str, **values: Any) -> EncoderRecipe:
    """The recipe with other values in one of its tables."""
    return replace(recipe, **{table: replace(getattr(recipe, table), **values)})


def _stages(recipe: EncoderRecipe, first: int, second: int, last: int) -> EncoderRecipe:
    steps: tuple[Stage1, Stage2a, Stage2b] = (
        replace(recipe.stage1, steps=first),
        replace(recipe.stage2a, steps=second),
        replace(recipe.stage2b, steps=last),
    )
    return replace(recipe, stage1=steps[0], stage2a=steps[1], stage2b=steps[2])


def _share(share: float) -> Change:
    return lambda r: r.with_steps(round(r.steps * share))


def _batch(size: int) -> Change:
    return lambda r: _with(r, "training", batch=size).with_steps(round(r.steps * r.training.batch / size))


def _experts() -> Any:
    from moon_ops.recipes import Experts

    return Experts(routed=4)
