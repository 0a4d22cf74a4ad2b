"""Peak memory of a refresh (embed and publish) over 100 thousand items and over 10 thousand (run `make demo` first).

Each runs in a process of its own, whose peak the kernel counts. One item in twenty has a picture, all have a text of their own, so that
the run is bound by the number of items and not by the minutes that it takes. Publication fills Feast's online store from nothing, the
representation table and the index. ``--json`` prints one object as the last line; ``--sizes 1000,10000`` for a quicker look.
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
import pyarrow as pa

from moon_ops.embeddings import produce
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.lake.tables import image_bytes
from moon_ops.publication import publication
from moon_ops.release import stages
from moon_ops.release.status import status
from moon_ops.settings import Settings

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CHUNK, EVERY = 10_000, 20


def fill(lake: Lake, shop: Lake, count: int) -> None:
    """A catalogue of ``count`` items, a chunk in memory at a time."""
    shown = list(dict.fromkeys(i for row in shop.read("items", ["image_ids"])["image_ids"].to_pylist() for i in row or []))[:1000]
    pictures = [{"image_id": i, "bytes": content, "created": START} for i, content in image_bytes(shop, shown)]
    lake.append("images", pa.Table.from_pylist(pictures, schema=SCHEMAS["images"]))
    lake.append("events", SCHEMAS["events"].empty_table())
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        rows = [
            {"item_id": n, "spu_id": n, "title": f"thing number {n}", "status": "active", "content_hash": f"{n:024x}"}
            | {"image_ids": [shown[n % len(shown)]] if n % EVERY == 0 else []}
            for n in numbers
        ]
        table = pa.Table.from_pylist(rows, schema=pa.schema([SCHEMAS["items"].field(name) for name in rows[0]]))
        for name in ("event_timestamp", "created"):
            table = table.append_column(name, pa.array([START] * len(numbers), STAMP))
        for field in SCHEMAS["items"]:
            if field.name not in table.column_names:
                table = table.append_column(field.name, pa.nulls(len(numbers), field.type))
        lake.append("items", table.select(SCHEMAS["items"].names).cast(SCHEMAS["items"]))


def refresh(home: Path, encoder: int) -> dict[str, float]:
    """Embed and publish what lies in ``home``; the peak of this process [MiB] before and after, and seconds."""
    settings = Settings.from_environment()
    runtime = stages.runtime(settings, encoder)
    small = Settings(home=home, workers=settings.workers)
    began = time.perf_counter()
    produce.embed(small.lake, runtime, 1, now=START, workers=small.workers)
    embedded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    produce.embed_queries(small.lake, runtime, 1, now=START)
    publication.publish(small, 1, now=START)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"embed_mib": embedded, "peak_mib": peak, "seconds": time.perf_counter() - began}


def measure(settings: Settings, sizes: list[int]) -> dict[str, float]:
    """Peak of each size, in a process of its own."""
    encoder = status(settings)["champion"]["encoder"]
    out: dict[str, float] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=settings.home) as folder:
            fill(Lake(f"{folder}/lake"), settings.lake, size)
            command = [sys.executable, __file__, "--refresh", folder, str(encoder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        out |= {f"{name}_{size // 1000}k": value for name, value in found.items()}
        peak, embedded, seconds = (found[name] for name in ("peak_mib", "embed_mib", "seconds"))
        print(f"{size:>8,} items: {peak:.0f} MiB at the peak ({embedded:.0f} after embedding), {seconds:.0f} s")
    peaks = [out[f"peak_mib_{size // 1000}k"] for size in sizes]
    return {**out, "ratio_100k_10k": peaks[-1] / peaks[0]}


def table() -> dict[str, float]:
    """Measure, and print it."""
    sizes = figures.option("sizes", "10000,100000")
    found = measure(Settings.from_environment(), [int(size) for size in sizes.split(",")])
    print(f"ratio {found['ratio_100k_10k']:.2f}")
    return found


if __name__ == "__main__":
    if "--refresh" in sys.argv:  # in a process of its own
        at = sys.argv.index("--refresh")
        print(json.dumps(refresh(Path(sys.argv[at + 1]), int(sys.argv[at + 2]))))
    else:
        figures.main(table)
