"""Memory and seconds of InfoNCE with many negatives: ours in pieces, beside the whole matrix as sentence-transformers' loss builds it.

Each runs in a process of its own, whose peak the kernel counts, on one thread; seconds are the processor's. The formula: gradients of the
vectors, twice while they are scaled, and a tile of similarities with its masks; of the whole matrix, similarities, masked similarities and
their gradient. ``--rows 1024 --columns 16384 --whole`` gives the
sizes and the peer; the peer is left out without ``--whole``. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import figures

D = 128


def measured(kind: str, rows: int, columns: int) -> dict[str, float]:
    """Loss, peak above what torch itself and the vectors take [MiB], and CPU-seconds of the loss with its gradient."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    torch.manual_seed(0)
    query, item = (F.normalize(torch.randn(count, D), dim=-1).requires_grad_() for count in (rows, columns))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    loss: Any
    if kind == "ours":
        from moon_ops.encoder.losses import info_nce

        products = torch.arange(columns)
        loss = info_nce(query, item, torch.arange(rows), torch.tensor(20.0), lambda r, c: products[r][:, None] == products[c][None, :])
    else:  # as sentence_transformers.losses.MultipleNegativesRankingLoss with both directions, of vectors that are made already
        scores = 20.0 * query @ item.T
        loss = (F.cross_entropy(scores, torch.arange(rows)) + F.cross_entropy(scores[:, :rows].T, torch.arange(rows))) / 2
    loss.backward()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"loss": float(loss), "peak_mib": peak, "seconds": time.process_time() - began}


def table() -> dict[str, object]:
    """Ours, and the whole matrix where it is asked for."""
    rows, columns = int(figures.option("rows", "1024")), int(figures.option("columns", "16384"))
    from moon_ops.encoder.losses import TILE

    formula = {
        "ours": (2 * (rows + columns) * D + 2 * min(TILE, rows * columns)) * 4 / 2**20,
        "whole": (2 * (rows + columns) * D + 3 * rows * columns) * 4 / 2**20,
    }
    found: dict[str, object] = {"rows": rows, "columns": columns, "dimensions": D}
    for kind in ("ours", "whole") if "--whole" in sys.argv else ("ours",):
        command = [sys.executable, __file__, "--one", kind, "--rows", str(rows), "--columns", str(columns)]
        one = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{kind:>6}: loss {one['loss']:.4f}, {one['peak_mib']:,.0f} MiB (formula {formula[kind]:,.0f}), {one['seconds']:.1f} s")
        found |= {f"{kind}_{name}": value for name, value in one.items()} | {f"{kind}_formula_mib": formula[kind]}
    return found


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(measured(figures.option("one", "ours"), int(figures.option("rows", "0")), int(figures.option("columns", "0")))))
    else:
        figures.main(table)
