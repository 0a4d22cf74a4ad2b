"""The exchange rate as people see it: the file, tables, sentences, the scatter plot, and figures for MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moon_ops.files import write_text
from moon_ops.release.expected_gain import RECALL
from moon_ops.release.pictures import pyplot
from moon_ops.settings import Settings
from moon_ops.studies import predictions
from moon_ops.studies.exchange_rate import Point, Rate, Slope
from moon_ops.studies.prediction_error import ENCODER, MEAN, RECIPE, SAME, Comparison, Error
from moon_ops.studies.predictions import Prediction


def keep(
    settings: Settings, points: Sequence[Point], found: Rate, left_out: Mapping[int, str], on: Mapping[str, Any]
) -> tuple[list[Path], list[Prediction]]:
    """Write ``MOON_HOME/exchange_rate.json``, the table and the scatter plot; where they are, and the predictions of before beside what
    was found ``on`` their terms.
    """
    place = predictions.place(settings)
    with predictions.writing(settings):
        aucs = {p.contract_id: {outcome: p.auc(outcome) for outcome in p.aucs} for p in points}
        listed = predictions.checked(predictions.known(settings), on, aucs)
        content = {**asdict(found), "points": [asdict(p) for p in points], "left_out": dict(left_out), "terms": dict(on)}
        write_text(place, json.dumps(content | {"predictions": [asdict(one) for one in listed]}, indent=2) + "\n")
        written, drawn = place.with_suffix(".md"), place.with_suffix(".png")
        write_text(written, tables(found, listed))
    scatter(points, [s for s in found.slopes if s.metric == RECALL], drawn)
    return [place, written, drawn], listed


def tables(found: Rate, listed: Sequence[Prediction]) -> str:
    """Markdown: the slopes, the errors of what is left out with what they say, and what was predicted before."""
    foretold = predictions.table(listed)
    parts = [table(found.slopes), error_table(found), *verdicts(found.comparisons), foretold]
    return "\n".join(part for part in parts if part)


def table(found: Sequence[Slope]) -> str:
    """A Markdown table of AUC per 0.01 of each metric."""
    lines = ["| metric | outcome | AUC per +0.01 | 95 % interval | R² | zero excluded |", "|---|---|---|---|---|---|"]
    for s in found:
        excluded = "yes" if s.low > 0 or s.high < 0 else "no"
        lines.append(
            f"| {s.metric} | {s.outcome} | {s.slope / 100:+.5f} | [{s.low / 100:+.5f}, {s.high / 100:+.5f}] | {s.r2:.2f} | {excluded} |"
        )
    return "\n".join(lines) + "\n"


def error_table(found: Rate) -> str:
    """A Markdown table of how far each line is off, in AUC, on an encoder that it has not seen, and on a recipe."""
    recipes = any(e.left_out == RECIPE for e in found.errors)
    heads = ["metric", "outcome", "error, an encoder left out", "largest", *(["error, its recipe left out", "largest"] if recipes else [])]
    heads += [f"beside {RECALL}", "p"]
    beside = {(c.metric, c.outcome): [_verdict(c), f"{c.p:.3f}"] for c in found.comparisons}
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for e in (e for e in found.errors if e.left_out == ENCODER):
        cells = [e.metric, e.outcome, *_off(e)]
        cells += [cell for r in found.errors if r.left_out == RECIPE and (r.metric, r.outcome) == (e.metric, e.outcome) for cell in _off(r)]
        lines.append("| " + " | ".join([*cells, *beside.get((e.metric, e.outcome), ["", ""])]) + " |")
    return "\n".join(lines) + "\n"


def _off(error: Error) -> list[str]:
    return [f"{error.rmse:.4f}", f"{error.largest:.4f} (encoder {error.worst})"]


def _verdict(found: Comparison) -> str:
    return found.verdict if found.verdict == SAME else f"{found.verdict} ({found.difference:+.4f})"


def verdicts(found: Sequence[Comparison]) -> list[str]:
    """For each outcome a sentence on which metrics predict an encoder that is left out no better and no worse than recall."""
    said = []
    for outcome in dict.fromkeys(c.outcome for c in found):
        some = [c for c in found if c.outcome == outcome]
        same, mean = [c.metric for c in some if c.metric != MEAN and c.verdict == SAME], next(c for c in some if c.metric == MEAN)
        if same:
            said.append(f"- {outcome}: {RECALL} and {', '.join(same)} are {SAME} by how well they predict an encoder that is left out")
        if mean.verdict != "worse":
            said.append(f"- {outcome}: {RECALL} is not shown to predict better than {MEAN}")
    return ["\n".join(said) + "\n"] if said else []


def figures(found: Rate, listed: Sequence[Prediction]) -> dict[str, float]:
    """For MLflow: slopes, errors, and what was predicted and found."""
    out = {f"exchange_rate/{_name(s.metric, s.outcome)}": s.slope for s in found.slopes}
    for e in found.errors:
        name = _name(e.metric, e.outcome)
        out |= {
            f"exchange_rate/{e.left_out}_left_out/rmse/{name}": e.rmse,
            f"exchange_rate/{e.left_out}_left_out/largest/{name}": e.largest,
        }
    for c in found.comparisons:
        out[f"exchange_rate/beside_recall/{_name(c.metric, c.outcome)}"] = c.difference
        out[f"exchange_rate/beside_recall_p/{_name(c.metric, c.outcome)}"] = c.p
    for one in (one for one in listed if one.found):  # the newest of an encoder stays
        for by in (by for by in one.expected if by.metric == RECALL and by.outcome in one.found):
            name = f"encoder_{one.encoder}:{_name('', by.outcome)}"
            out |= {f"exchange_rate/predicted/{name}": by.auc, f"exchange_rate/found/{name}": one.found[by.outcome]}
    return out


def _name(metric: str, outcome: str) -> str:
    return f"{metric.replace('@', '_at_')}:{outcome}".removeprefix(":").replace(" ", "_")


def scatter(points: Sequence[Point], found: Sequence[Slope], path: Path) -> None:
    """AUC over recall, an axis for each outcome; recipes have colours of their own."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3), layout="constrained", squeeze=False)
    recipes = list(dict.fromkeys(p.recipe for p in points))
    for axis, slope in zip(axes[0], found, strict=True):
        for n, name in enumerate(recipes):
            some = [p for p in points if p.recipe == name]
            spread = [np.ptp(p.aucs[slope.outcome]) / 2 for p in some]
            colour = "#22915a" if len(recipes) == 1 else f"C{n}"
            at = [p.metrics[RECALL] for p in some], [p.auc(slope.outcome) for p in some]
            axis.errorbar(*at, yerr=spread, fmt="o", color=colour, capsize=2, label=name)
        x, y = (np.array(values) for values in ([p.metrics[RECALL] for p in points], [p.auc(slope.outcome) for p in points]))
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, y.mean() + slope.slope * (ends - x.mean()), color="#888888", lw=1)
        axis.set(xlabel=RECALL, ylabel=f"AUC, {slope.outcome}")
        if len(recipes) > 1:
            axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
