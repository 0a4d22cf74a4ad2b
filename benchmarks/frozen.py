"""What ImageNet's tower finds that nobody has trained on a shop: photographs of users against the shop's, before and after a time.

``--shop DIRECTORY`` in the ingest layout, ``--until TIME`` (photographs before it teach, those after it judge), ``--from TIME`` (judge
from then on), ``--sizes 160,224``. R@1 and R@10 of items, float32, one thread. *studio*: the nearest of the items' own pictures.
*neighbour*: the item of the nearest photograph of before. *regression*: logistic, on the photographs of before. Needs the extra ``warm``.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import figures
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from moon_ops.encoder.towers import LiteTower

Floats, Ints = NDArray[np.float32], NDArray[np.int64]
AT_ONCE = 16
MEAN, DEVIATION = torch.tensor([0.498] * 3)[:, None, None], torch.tensor([0.502] * 3)[:, None, None]  # as the weights were trained


def features(tower: LiteTower, files: list[Path], size: int) -> Floats:
    """The mean over a picture's tokens [N, 1280], of length 1."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(files), AT_ONCE):
            opened = [
                Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for file in files[start : start + AT_ONCE]
            ]
            pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in opened])
            found.append(tower.net.extract_features((pixels - MEAN) / DEVIATION).mean((2, 3)))
    return torch.nn.functional.normalize(torch.cat(found), dim=1).numpy()


def recalls(scores: Floats, classes: Ints, answers: Ints) -> dict[str, float]:
    """R@1 and R@10 for scores [Q, C] of columns that stand for the items ``classes`` [C], each counted once at its best."""
    items = np.unique(classes)
    best = np.stack([scores[:, classes == item].max(1) for item in items], 1)
    ranks = (best > best[np.arange(len(answers)), np.searchsorted(items, answers)][:, None]).sum(1)
    return {"R@1": float((ranks < 1).mean()), "R@10": float((ranks < 10).mean())}


def table() -> dict[str, object]:
    """Read the shop, and judge the three ways at each size."""
    torch.set_num_threads(1)
    shop = Path(figures.option("shop", "."))
    queries = {row["query_id"]: row for row in pq.read_table(shop / "queries.parquet").to_pylist() if row["image"]}
    events = [
        row for row in pq.read_table(shop / "events.parquet").to_pylist() if row["event"] == "purchase" and row["query_id"] in queries
    ]
    items = [(row["item_id"], shop / row["images"][0]) for row in pq.read_table(shop / "items.parquet").to_pylist() if row["images"]]
    until = dt.datetime.fromisoformat(figures.option("until", "")).replace(tzinfo=dt.UTC)
    since = dt.datetime.fromisoformat(figures.option("from", f"{until:%Y-%m-%d}")).replace(tzinfo=dt.UTC)
    before = [row for row in events if row["timestamp"] < until]
    after = [row for row in events if row["timestamp"] >= since]
    tower = LiteTower()
    tower.warm()
    tower.eval()
    found: dict[str, object] = {"before": len(before), "judged": len(after)}
    for size in map(int, figures.option("sizes", "160,224").split(",")):
        known = features(tower, [shop / queries[row["query_id"]]["image"] for row in before], size)
        asked = features(tower, [shop / queries[row["query_id"]]["image"] for row in after], size)
        studio = features(tower, [file for _, file in items], size)
        taught, answers = (np.array([row["item_id"] for row in rows]) for rows in (before, after))
        fitted = LogisticRegression(C=100.0, max_iter=1000).fit(known, taught)
        ways = {
            "studio": (asked @ studio.T, np.array([item for item, _ in items])),
            "neighbour": (asked @ known.T, taught),
            "regression": (fitted.decision_function(asked).astype(np.float32), fitted.classes_),
        }
        for way, (scores, classes) in ways.items():
            one = recalls(scores, classes, answers)
            print(f"{size} px, {way:>10}: " + ", ".join(f"{name} {value:.3f}" for name, value in one.items()), flush=True)
            found |= {f"{size}_{way}_{name}": value for name, value in one.items()}
    return found


if __name__ == "__main__":
    figures.main(table)
