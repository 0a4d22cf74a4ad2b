"""What a checkpoint writes of a click model's embedding table: all rows and moments, as before, or those that were touched since the last.

The table is 10 million rows of 16 numbers with Adam's two moments (2 GB). Steps touch 512 × 25 rows each, drawn evenly, and as popularity
often falls (the r-th row with a chance of 1 / r): 512 impressions with an item and behaviours each.
``--rows 10000000``, ``--directory DIRECTORY``; ``--json`` prints one object last.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
import torch
from torch import nn

from moon_ops.ctr.prefetch import WHOLE
from moon_ops.ctr.table_log import MOMENTS, TableLog

DIM, TOUCHED, EVERY = 16, 512 * 25, (400, 2000, 8000)


def drawn(kind: str, rows: int, count: int, seed: int) -> torch.Tensor:
    """Which rows ``count`` steps touch, each once."""
    generator, found = np.random.default_rng(seed), np.zeros(rows, bool)
    for _ in range(count):
        even = generator.random(TOUCHED)
        found[(even * rows).astype(np.int64) if kind == "even" else (np.exp(even * np.log(rows)) - 1).astype(np.int64)] = True
    return torch.from_numpy(np.flatnonzero(found))


def measured(embedding: nn.Embedding, kind: str, steps: int, directory: Path) -> dict[str, float]:
    """Bytes and seconds of a whole file, and of the checkpoint ``steps`` later."""
    optimizer = torch.optim.SparseAdam([embedding.weight], lr=1e-3)
    log = TableLog(directory, embedding.weight, optimizer, WHOLE)
    optimizer.state[embedding.weight] = {"step": 1, **{name: torch.zeros_like(embedding.weight) for name in MOMENTS}}
    touched, found = drawn(kind, len(embedding.weight), steps, steps), {"share": 0.0}
    for number, name in enumerate(("whole", "changed")):
        began = time.perf_counter()
        log.write(number)
        found[f"{name}_s"] = time.perf_counter() - began
        found[f"{name}_bytes"] = (directory / f"{log.files[-1]}.0.safetensors").stat().st_size
        log.changed[touched] = True
    log.remove_others()
    return found | {"share": len(touched) / len(embedding.weight)}


def table() -> dict[str, object]:
    """Measure, and print it."""
    embedding = nn.Embedding(int(figures.option("rows", "10000000")), DIM, sparse=True)
    found: dict[str, object] = {"rows": len(embedding.weight), "dim": DIM}
    with tempfile.TemporaryDirectory(dir=figures.option("directory", tempfile.gettempdir())) as scratch:
        for kind, steps in itertools.product(("even", "popular"), EVERY):
            one = measured(embedding, kind, steps, Path(scratch))
            whole, changed = (f"{one[f'{name}_bytes'] / 1e6:,.0f} MB in {one[f'{name}_s']:.1f} s" for name in ("whole", "changed"))
            print(f"{kind}, {steps} steps: {one['share']:.1%} of rows touched; {whole} → {changed}", flush=True)
            found |= {f"{kind}_{steps}_{name}": value for name, value in one.items()}
    return found


if __name__ == "__main__":
    figures.main(table)
