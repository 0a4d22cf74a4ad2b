"""Seconds to embed, publish and index 1,000 new items, in catalogues of 10 thousand and of 1 million (run `make demo` first).

The new items are the demo shop's, with their pictures, under new ids; the vectors of the base are made up (a mixture of Gaussians on the
sphere) and were published before the clock starts. Their profiles and vectors are not in the online store: what is written there is
the new items' in both cases. ``--json`` prints one object as the last line; ``--sizes 10000,100000`` for smaller catalogues.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moon_ops.embeddings import features, online_store, produce, vector_tables
from moon_ops.embeddings.runtime import Runtime
from moon_ops.lake import changes, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.lake.tables import image_bytes
from moon_ops.publication import marks, publication
from moon_ops.release import stages
from moon_ops.release.status import status
from moon_ops.settings import Settings

NEW, FIRST_NEW = 1000, 10**9
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
CHUNK = 100_000


def made_up(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors [N, D] around 1,000 centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(1000, dim)).astype(np.float32)
    rows = centres[generator.integers(0, 1000, count)] + 0.5 * generator.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def base(home: Path, count: int, runtime: Runtime) -> Settings:
    """A home with a published catalogue of ``count`` items."""
    settings = Settings(home=home, workers=2)
    lake, name = settings.lake, vector_tables.table_name(1)
    for table in (name, vector_tables.query_table_name(1), vector_tables.excused_table_name(1)):
        vector_tables.create(lake, table, runtime)
    for start in range(0, count, CHUNK):
        some = min(CHUNK, count - start)
        ids = pa.array(range(start, start + some), pa.int64())
        known = {"item_id": ids, "spu_id": ids, "title": [f"thing {n}" for n in range(some)], "status": ["active"] * some}
        known |= {"content_hash": [f"{n:024x}" for n in range(start, start + some)]}
        known |= {when: pa.array([START] * some, STAMP) for when in ("event_timestamp", "created")}
        blank = {f.name: pa.nulls(some, f.type) for f in SCHEMAS["items"] if f.name not in known}
        rows = pa.table({**known, **blank}).select(SCHEMAS["items"].names).cast(SCHEMAS["items"])
        lake.append("items", rows)
        keys = rows.select(list(vector_tables.KEY))
        schema = lake.open(name).schema
        columns = keys.append_column("embedding", vector_tables.as_column(made_up(some, runtime.dim, start)))
        columns = columns.append_column("created", rows["created"]).append_column("version_id", vector_tables.version_ids(keys))
        lake.append(name, columns.select(schema.names).cast(schema))
    lake.append("events", SCHEMAS["events"].empty_table())
    changes.mark(lake, name, items=changes.newest(lake.open("items")))
    statistics.derive(lake)
    store = features.open_store(settings)
    features.apply(store, settings.home, features.definitions(lake, [1]))
    for view, table in (("item_profile", statistics.PROFILE), ("item_embedding_v1", name)):
        marks.remember(settings, view, changes.newest(lake.open(table)), START, online_store.identity(store))
    publication.publish(settings, 1, now=START)
    return settings


def add(settings: Settings, shop: Lake) -> None:
    """The shop's first items under new ids, with their pictures; a small shop's more than once."""
    known = shop.read("items").slice(0, NEW).to_pylist()
    items = [dict(known[number % len(known)]) for number in range(NEW)]
    wanted = {i for row in items for i in row["image_ids"] or []}
    rows = [{"image_id": i, "bytes": content, "created": START} for i, content in image_bytes(shop, sorted(wanted))]
    settings.lake.append("images", pa.Table.from_pylist(rows, schema=SCHEMAS["images"]))
    for number, row in enumerate(items):
        row |= {"item_id": FIRST_NEW + number, "event_timestamp": START + HOUR, "created": START + HOUR}
    settings.lake.append("items", pa.Table.from_pylist(items, schema=SCHEMAS["items"]))


def measure(settings: Settings, sizes: list[int]) -> dict[str, float]:
    """Seconds per size, of each part."""
    runtime = stages.runtime(settings, status(settings)["champion"]["encoder"])
    out: dict[str, float] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=settings.home) as folder:
            began = time.perf_counter()
            made = base(Path(folder), size, runtime)
            print(f"{size:>9,} items made and published in {time.perf_counter() - began:.0f} s")
            add(made, settings.lake)
            began = time.perf_counter()
            report = produce.embed(made.lake, runtime, 1, now=START + HOUR, workers=settings.workers)
            embedded = time.perf_counter()
            published = publication.publish(made, 1, now=START + HOUR, behaviour=False)
            ended = time.perf_counter()
            assert (report.embedded, published.items) == (NEW, size + NEW), "all new items were embedded, and can be found"
            name = "1m" if size == 10**6 else f"{size // 1000}k"
            out |= {f"embed_s_{name}": embedded - began, f"publish_s_{name}": ended - embedded, f"total_s_{name}": ended - began}
            print(f"{size:>9,} items: 1,000 new ones embedded in {embedded - began:.2f} s, published in {ended - embedded:.2f} s")
    totals = [value for name, value in out.items() if name.startswith("total")]
    return {**out, "ratio_1m_10k": totals[-1] / totals[0]}


def table() -> dict[str, float]:
    """Measure, and print it."""
    sizes = figures.option("sizes", "10000,1000000")
    found = measure(Settings.from_environment(), [int(size) for size in sizes.split(",")])
    print(f"the largest catalogue takes {found['ratio_1m_10k']:.2f} times as long as the smallest")
    return found


if __name__ == "__main__":
    figures.main(table)
