"""Peak memory of embedding items with large photographs: 300 JPEGs of about 3 MB, in a process of its own, whose peak the kernel counts.

The newest encoder of ``MOON_HOME`` is used (run `make demo` first), on the pictures of ``ingest_memory.py``. These and their lake are drawn
into a scratch directory beside ``MOON_HOME`` (2 GB), which is removed. ``--items 100`` for a quicker look, ``--json`` prints one object as
the last line.
"""

from __future__ import annotations

import datetime as dt
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures
import ingest_memory

from moon_ops.embeddings import produce
from moon_ops.embeddings.runtime import Runtime
from moon_ops.lake.lake import Lake
from moon_ops.registry.registry import ENCODER, Registry
from moon_ops.settings import Settings

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def embed(directory: Path, lake: Path, workers: int) -> dict[str, float]:
    """Embed the lake's items; the peak of this process [MiB] with the encoder opened and after, and seconds."""
    runtime = Runtime(directory, threads=workers)
    runtime.warm_up(bulk=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    report = produce.embed(Lake(str(lake)), runtime, 1, now=NOW, workers=workers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"items": report.embedded, "before_mib": before, "peak_mib": peak, "seconds": time.perf_counter() - began}


def table() -> dict[str, float]:
    """Measure, and print it."""
    count, settings = int(figures.option("items", "300")), Settings.from_environment()
    registry = Registry(settings)
    version = registry.newest(ENCODER)
    if version is None:
        sys.exit(f"moon: MOON_HOME = {settings.home} holds no encoder → run `make demo` first")
    with tempfile.TemporaryDirectory(dir=settings.home.parent) as folder:
        size = ingest_memory.draw(Path(folder, "shop"), count)
        for part in (ingest_memory.__file__, "--ingest", folder), (__file__, "--embed", str(registry.fetch(ENCODER, version)), folder):
            command = [sys.executable, *map(str, part), str(settings.workers)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1]) | {"picture_mb": size / 1e6, "workers": settings.workers}
    print(f"{found['items']:,.0f} items with a picture of {size / 1e6:.2f} MB, {settings.workers} workers, {found['seconds']:.0f} s")
    print(f"{found['peak_mib']:.0f} MiB at the peak, {found['before_mib']:.0f} with the encoder opened")
    return found


if __name__ == "__main__":
    if "--embed" in sys.argv:  # in a process of its own
        at = sys.argv.index("--embed")
        print(json.dumps(embed(Path(sys.argv[at + 1]), Path(sys.argv[at + 2], "lake"), int(sys.argv[at + 3]))))
    else:
        figures.main(table)
