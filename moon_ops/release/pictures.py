"""Pictures of what a release reached: differences with their intervals, answers before and after, a grid of searches, and charts."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from moon_ops.metric_names import ID_ONLY, IMAGE_SEARCH, KS, ORACLE, TEXT_SEARCH, ctr, recall
from moon_ops.release.gates import FAILED, PASSED, TOO_LITTLE

CELL, GAP, THUMB = 96, 8, 112  # pixels
HIT, MISS, INK = (34, 139, 84), (200, 200, 200), (40, 40, 40)
SHOWN_AS = {PASSED: ("#1e7d46", "o"), FAILED: ("#b3261e", "X"), TOO_LITTLE: ("#b26a00", "D")}  # outcome → colour and mark
SLICES = ("", "new_items", "long_tail", "small_sellers")


@dataclass(frozen=True)
class Searched:
    """One search: the query's picture, the pictures found in order, and which of them are the product that was bought."""

    query: Image.Image
    found: Sequence[Image.Image]
    hits: Sequence[bool]


@dataclass(frozen=True)
class Pair:
    """A query's or an item's picture, and what is near it before and after: pictures, and whether each is the product bought."""

    asked: Image.Image
    before: Sequence[tuple[Image.Image, bool]]
    after: Sequence[tuple[Image.Image, bool]]


@dataclass(frozen=True)
class Gap:
    """A difference with its 95 % interval; ``bound`` is the difference from which on the gate fails, None for what is no gate."""

    name: str
    value: float
    low: float
    high: float
    bound: float | None
    bad_above: bool
    outcome: str


def grid(searches: Sequence[Searched], path: Path) -> None:
    """Draw a row per search, two rows side by side: the photograph, then what was found; the bought product has a green frame."""
    most = max(len(s.found) for s in searches)
    width = (most + 1) * (CELL + GAP) + 3 * GAP
    rows = (len(searches) + 1) // 2
    sheet = Image.new("RGB", (2 * width + GAP, rows * (CELL + GAP) + 3 * GAP + 12), "white")
    draw = ImageDraw.Draw(sheet)
    for number, search in enumerate(searches):
        left, top = (number % 2) * (width + GAP) + GAP, (number // 2) * (CELL + GAP) + 2 * GAP + 12
        sheet.paste(ImageOps.fit(search.query, (CELL, CELL)), (left, top))
        for place, (picture, hit) in enumerate(zip(search.found, search.hits, strict=True)):
            x = left + (place + 1) * (CELL + GAP) + 2 * GAP
            sheet.paste(ImageOps.pad(picture, (CELL, CELL), color="white"), (x, top))
            draw.rectangle((x - 2, top - 2, x + CELL + 1, top + CELL + 1), outline=HIT if hit else MISS, width=3 if hit else 1)
    for column in range(min(2, len(searches))):
        left = column * (width + GAP) + GAP
        draw.text((left, GAP), "photograph", fill=INK)
        draw.text((left + CELL + 3 * GAP, GAP), f"first {most} items found (green: the product bought)", fill=INK)
    sheet.save(path)


def recall_chart(untrained: Mapping[str, float], trained: Mapping[str, float], path: Path) -> None:
    """Bars of recall@1/5/10 for image and text search, untrained beside trained."""
    plt = pyplot()
    names = [recall(kind, k) for kind in (IMAGE_SEARCH, TEXT_SEARCH) if recall(kind) in trained for k in KS]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for shift, (label, values, colour) in enumerate((("untrained", untrained, "#bbbbbb"), ("trained", trained, "#22915a"))):
        bars = axes.bar(
            [n + (shift - 0.5) * 0.4 for n in range(len(names))], [values.get(n, 0.0) for n in names], 0.4, label=label, color=colour
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(names)), [n.replace("_search/", "\n") for n in names], fontsize=8)
    axes.set(ylim=(0, 1), ylabel="share of queries", title="The bought product is among the first K of the whole catalogue")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def auc_chart(metrics: Mapping[str, float], path: Path) -> None:
    """Bars of AUC by slice: ID-only, with vectors, and the oracle that no model can beat."""
    plt = pyplot()
    slices = [where for where in SLICES if ctr("auc", where) in metrics]
    series = (("ID-only DIN", ID_ONLY, "#bbbbbb"), ("CUBE", "", "#22915a"), ("oracle", ORACLE, "#dddddd"))
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for shift, (label, model, colour) in enumerate(series):
        values = [metrics.get(ctr("auc", where, model), 0.0) for where in slices]
        bars = axes.bar([n + (shift - 1) * 0.27 for n in range(len(slices))], values, 0.27, label=label, color=colour)
        axes.bar_label(bars, fmt="%.3f", fontsize=8)
    axes.set_xticks(range(len(slices)), [where.replace("_", " ") or "all impressions" for where in slices])
    axes.set(ylim=(0.5, 1), ylabel="AUC", title="Clicks on impressions after training")
    axes.legend(loc="upper right", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def forest(gaps: Sequence[Gap], path: Path) -> None:
    """A row for each difference, each with a scale of its own: the 95 % interval, a line where there is none, red where the gate fails."""
    plt = pyplot()
    figure, rows = plt.subplots(len(gaps), 1, figsize=(9.6, 0.62 * len(gaps) + 0.2), squeeze=False, layout="constrained")
    for axes, gap in zip(rows[:, 0], gaps, strict=True):
        ends = [abs(end) for end in (gap.low, gap.high, gap.value, gap.bound) if end is not None and math.isfinite(end)]
        reach = 1.2 * max([*ends, 1e-9])
        if gap.bound is not None and math.isfinite(gap.bound):
            axes.axvspan(*((gap.bound, reach) if gap.bad_above else (-reach, gap.bound)), color="#f6c8c3", lw=0)
            axes.axvline(gap.bound, color="#b3261e", lw=1, ls="--")
        axes.axvline(0, color="#555555", lw=1)
        colour, mark = SHOWN_AS.get(gap.outcome, ("#666666", "o"))
        axes.plot([gap.low, gap.high], [0, 0], color=colour, lw=3, solid_capstyle="butt")
        axes.plot([gap.value], [0], mark, color=colour, ms=9)
        axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[0], yticklabels=[gap.name])
        axes.tick_params(axis="x", labelsize=7, length=2, pad=1)
        axes.tick_params(axis="y", labelsize=10, length=0)
        axes.spines[["top", "left", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def pairs(rows: Sequence[Pair], path: Path) -> None:
    """A row for each query or item: its picture, the champion's items, and below them the candidate's; what was bought is framed."""
    most = max(len(side) for row in rows for side in (row.before, row.after))
    high, left = 2 * (CELL + GAP) + 2 * GAP, CELL + 4 * GAP
    sheet = Image.new("RGB", (left + most * (CELL + GAP) + GAP, high * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * high + GAP
        sheet.paste(ImageOps.pad(row.asked, (CELL, CELL), color="white"), (GAP, top + (CELL + GAP) // 2))
        for line, side in enumerate((row.before, row.after)):
            for place, (picture, hit) in enumerate(side):
                x, y = left + place * (CELL + GAP), top + line * (CELL + GAP)
                sheet.paste(ImageOps.pad(picture, (CELL, CELL), color="white"), (x, y))
                draw.rectangle((x - 2, y - 2, x + CELL + 1, y + CELL + 1), outline=HIT if hit else MISS, width=3 if hit else 1)
        draw.line((0, top + high - GAP, sheet.width, top + high - GAP), fill=MISS)
    sheet.save(path)


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG of a picture, a few kilobytes."""
    small, out = ImageOps.contain(picture, (THUMB, THUMB)), io.BytesIO()
    small.convert("RGB").save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


def pyplot() -> Any:
    """Matplotlib without a screen; imported when it is needed, because it takes a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
