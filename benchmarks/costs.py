"""Straight lines through what ``scale.py`` measured at several sizes: fixed, a million items, a million events; ``models/costs.toml``.

``--of FILE,FILE,…``: outputs of ``scale.py --json``, at least three, with different numbers of events an item. Relative errors are least
squared, and no amount is below zero. ``--beside FILE``: what the lines say of another size, beside what was measured there.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import figures
import numpy as np
from numpy.typing import NDArray

from moon_ops.recipes.costs import MILLION

PARTS = ("ingest", "derive", "night", "increment", "publish")
WHAT = {"seconds": "cpu", "memory": "peak_mib", "disk": "grown_mib"}
PUBLISH = {"seconds": "cpu", "memory": "peak_mib", "disk": "online_mib"}  # the table of vectors and the index have figures of their own


def measured(file: str) -> dict[str, float]:
    """The object that the benchmark printed last."""
    found: dict[str, float] = json.loads(Path(file).read_text().splitlines()[-1])
    return found


def line(sizes: NDArray[np.float64], values: NDArray[np.float64]) -> list[float]:
    """Amounts of 0 or more [3] for sizes [N, 3]: the best of all choices of which are not 0."""
    best, least = np.zeros(3), np.inf
    scaled = sizes / np.maximum(values, 1e-9)[:, None]
    for chosen in (list(one) for count in (1, 2, 3) for one in itertools.combinations(range(3), count)):
        found, *_ = np.linalg.lstsq(scaled[:, chosen], np.ones(len(values)), rcond=None)
        error = float(((scaled[:, chosen] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least - 1e-12:
            best, least = np.zeros(3), error
            best[chosen] = found
    return [float(f"{one:.3g}") for one in best]


def amount(run: dict[str, float], part: str, key: str) -> float:
    """What a part took, a publication without its index."""
    return max(run[f"{part}_{key}"] - (run["publish_index_s"] if (part, key) == ("publish", "cpu") else 0.0), 1e-3)


def _said(amounts: list[float], run: dict[str, float]) -> float:
    return amounts[0] + amounts[1] * run["items"] / MILLION + amounts[2] * run["events"] / MILLION


def table() -> dict[str, object]:
    """Print the lines as TOML."""
    runs = [measured(file) for file in figures.option("of", "").split(",") if file]
    beside = [measured(file) for file in figures.option("beside", "").split(",") if file]
    sizes = np.array([[1, run["items"] / MILLION, run["events"] / MILLION] for run in runs])
    found: dict[str, object] = {}
    for part in PARTS:
        print(f"[{part}]")
        for name, key in (PUBLISH if part == "publish" else WHAT).items():
            amounts = line(sizes, np.array([amount(run, part, key) for run in runs]))
            found[f"{part}_{name}"] = amounts
            told = "".join(f"  # {_said(amounts, run):,.1f}, measured {amount(run, part, key):,.1f}" for run in beside)
            print(f"{name} = {amounts}{told}")
    return found


if __name__ == "__main__":
    figures.main(table)
