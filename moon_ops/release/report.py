"""Pictures of what a release reached: a grid of searches, and charts of recall and AUC beside their floor and their ceiling."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from moon_ops.metric_names import ID_ONLY, IMAGE_SEARCH, KS, ORACLE, TEXT_SEARCH, ctr, recall

CELL, GAP = 96, 8  # pixels
HIT, MISS, INK = (34, 139, 84), (200, 200, 200), (40, 40, 40)
SLICES = ("", "new_items", "long_tail", "small_sellers")


@dataclass(frozen=True)
class Searched:
    """One search: the query's picture, the pictures found in order, and which of them are the product that was bought."""

    query: Image.Image
    found: Sequence[Image.Image]
    hits: Sequence[bool]


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


def page(title: str, pictures: Sequence[str], figures: Mapping[str, Any], path: Path) -> None:
    """One HTML page with the pictures and every figure."""
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{_shown(v)}</td></tr>" for k, v in sorted(figures.items()))
    shown = "".join(f'<p><img src="{html.escape(p)}" alt="{html.escape(p)}"></p>' for p in pictures)
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
        "<style>body{font:15px system-ui;max-width:80rem;margin:2rem auto}td{padding:.1rem 1rem}img{max-width:100%}</style>"
        f"<h1>{html.escape(title)}</h1>{shown}<table>{rows}</table>\n"
    )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else html.escape(str(value))


def pyplot() -> Any:
    """Matplotlib without a screen; imported when it is needed, because it takes a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
