"""What a request costs in a catalogue of 1 million items against one of 10 thousand: `/v1/search`, and `/v1/items` with one new item.

Runs after `make demo`, in temporary copies of its home. Items, pictures and vectors are made up (the vectors of ``benchmarks/index.py``),
and published before the clock starts, as `moon ingest` and `moon publish` leave them; encoder and release are the demo's. Requests go over
real HTTP to a service of each size in this process, in turn and one at a time, so that both meet the same other work: ``SEARCHES`` texts,
with and without a filter, then ``PUSHES`` items with a picture, each of which is waited for until a search finds it. Latencies are
medians. ``index_ms`` is the index alone, on queries beside items; ``recall`` that of its ten nearest against an exact scan. ``--json``
prints one object as the last line; ``--sizes 10000,100000`` for other sizes; ``--keep DIRECTORY`` keeps the homes there, and takes those
that it finds.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import io
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import figures
import httpx
import index as nearest
import numpy as np
import pyarrow as pa
from PIL import Image

from moon_ops.cli.trial import running
from moon_ops.embeddings import features, online_store, vector_tables
from moon_ops.embeddings.index import ItemIndex
from moon_ops.lake import changes, lookups, statistics
from moon_ops.lake.lake import Lake
from moon_ops.lake.schemas import SCHEMAS, STAMP
from moon_ops.publication import maintenance, marks, places, publication
from moon_ops.release.status import status
from moon_ops.settings import Settings

SEARCHES, PUSHES, WARM, CHUNK, K = 300, 20, 30, 100_000, 10
FIRST, PUSHED = 10**9, 2 * 10**9
TOKEN = {"authorization": "Bearer scale"}
WORDS = ("red", "blue", "green", "small", "large", "lamp", "chair", "table", "coat", "hat", "shoe", "cup", "plate", "clock", "bag", "vase")
PATIENCE = 120.0  # seconds that a pushed item may take to be found


def rows(start: int, count: int, when: dt.datetime) -> pa.Table:
    """Made-up items, each with a title, a price, a brand, a category of three levels, a seller and a picture of its own."""
    rng = np.random.default_rng(start)
    numbers = np.arange(start, start + count)
    words = rng.integers(0, len(WORDS), (count, 5))
    ids = pa.array(FIRST + numbers)
    known: dict[str, Any] = {"item_id": ids, "spu_id": ids, "seller_id": pa.array(rng.integers(0, 5000, count))}
    known |= {"title": [f"{' '.join(WORDS[w] for w in some)} {n}" for some, n in zip(words.tolist(), numbers.tolist(), strict=True)]}
    known |= {"category": [["home", f"room {c % 20}", f"kind {c}"] for c in rng.integers(0, 300, count).tolist()]}
    known |= {"brand": [f"brand {b}" for b in rng.integers(0, 2000, count).tolist()], "price": np.round(rng.lognormal(3, 1, count), 2)}
    known |= {"status": ["active"] * count, "content_hash": [f"{n:024x}" for n in numbers.tolist()]}
    known |= {"image_ids": [[hashlib.sha256(str(n).encode()).hexdigest()] for n in numbers.tolist()]}
    known |= dict.fromkeys(("event_timestamp", "created", "stated"), pa.array([when] * count, STAMP))
    blank = {f.name: pa.nulls(count, f.type) for f in SCHEMAS["items"] if f.name not in known}
    return pa.table({**known, **blank}).select(SCHEMAS["items"].names).cast(SCHEMAS["items"])


def pictures(items: pa.Table, when: dt.datetime) -> pa.Table:
    """A row of the lake's pictures for each item; nobody looks at their bytes."""
    count = items.num_rows
    known: dict[str, Any] = {"image_id": items["image_ids"].combine_chunks().flatten(), "bytes": pa.array([b"made up"] * count)}
    known |= {"created": pa.array([when] * count, STAMP)}
    blank = {f.name: pa.nulls(count, f.type) for f in SCHEMAS["images"] if f.name not in known}
    return pa.table({**known, **blank}).select(SCHEMAS["images"].names).cast(SCHEMAS["images"])


def home(demo: Settings, place: Path, items: int, encoder: int) -> Settings:
    """A copy of the demo's home with ``items`` made-up items more, published."""
    left_out = shutil.ignore_patterns("shop-*", "checkpoints", "report", "receipts")
    shutil.copytree(demo.home, place, symlinks=True, ignore=left_out)
    uri = f"sqlite:///{place / 'mlflow.db'}"
    settings = demo.replace(home=place, lake=Lake(str(place / "lake")), tracking_uri=uri, items_token="scale")
    lake, name, when = settings.lake, vector_tables.table_name(encoder), dt.datetime.now(dt.UTC)
    vectors, _ = nearest.catalogue(items, hard=False)
    schema = lake.open(name).schema
    for start in range(0, items, CHUNK):
        some = rows(start, min(CHUNK, items - start), when)
        lake.append("images", pictures(some, when))
        lake.append("items", some)
        keys = some.select(list(vector_tables.KEY))
        columns = keys.append_column("embedding", vector_tables.as_column(vectors[start : start + some.num_rows]))
        columns = columns.append_column("created", some["created"]).append_column("version_id", vector_tables.version_ids(keys))
        lake.append(name, columns.select(schema.names).cast(schema))
    del vectors
    for table in maintenance.tables(lake):
        lookups.tend(lake, table)
    changes.mark(lake, name, items=changes.newest(lake.open("items")))
    statistics.derive(lake)
    store = features.open_store(settings)
    features.apply(store, settings.home, features.definitions(lake, [encoder]))
    for view, table in (("item_profile", statistics.PROFILE), (f"item_embedding_v{encoder}", name)):  # a million rows of SQLite less
        marks.remember(settings, view, changes.newest(lake.open(table)), when, online_store.identity(store))
    publication.publish(settings, encoder, now=when)
    return settings


def searched(clients: list[httpx.Client], **more: str) -> list[float]:
    """Median milliseconds of a search of each service, which are asked in turn."""
    taken = np.zeros((WARM + SEARCHES, len(clients)))
    for number in range(len(taken)):
        text = " ".join(WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 7))
        for place, client in enumerate(clients):
            began = time.perf_counter()
            answer = client.post("/v1/search", data={"text": text, "k": str(K), **more})
            taken[number, place] = time.perf_counter() - began
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["items"]) == K
    return [float(ms) for ms in np.median(taken[WARM:], axis=0) * 1e3]


def picture(number: int) -> bytes:
    """A picture that nothing else shows."""
    noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def pushed(client: httpx.Client, number: int) -> tuple[float, float]:
    """Milliseconds until a new item is acknowledged, and seconds until a search finds it."""
    content, title = picture(number), f"pushed {number} {WORDS[number % len(WORDS)]}"
    item = {"item_id": PUSHED + number, "title": title, "price": 1.0, "images": [base64.b64encode(content).decode()]}
    began = time.perf_counter()
    answer = client.post("/v1/items", json={"items": [item]}, headers=TOKEN)
    answered = time.perf_counter() - began
    assert (answer.status_code, answer.json()["new"]) == (202, 1), answer.text
    while time.perf_counter() - began < PATIENCE:
        found = client.post("/v1/search", files={"image": content}, data={"text": title, "k": "5"}).json()["items"]
        if item["item_id"] in [hit["item_id"] for hit in found]:
            return answered * 1e3, time.perf_counter() - began
        time.sleep(0.02)
    raise TimeoutError(f"item {number} was not found after {PATIENCE:.0f} s")


def looked(settings: Settings, encoder: int, items: int) -> dict[str, Any]:
    """The index alone: its kind, milliseconds of a query, and recall of the ten nearest against an exact scan."""
    opened, vectors, queries = ItemIndex.open(places.index_place(settings, encoder)), *nearest.catalogue(items, hard=False)
    queries = queries[:200]
    found, exact = opened.search(queries, K, opened.header.contract_id)[0], faiss.knn(queries, vectors, K, faiss.METRIC_INNER_PRODUCT)[1]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    taken = [nearest._timed(lambda query: opened.search(query, K, opened.header.contract_id)[0], query[None])[0] for query in queries]
    faiss.omp_set_num_threads(threads)
    share = np.mean([len(set(f) & set((FIRST + e).tolist())) / K for f, e in zip(found.tolist(), exact, strict=True)])
    return {"kind": opened.header.kind, "recall": float(share), "index_ms": float(np.median(taken) * 1e3)}


def made(demo: Settings, scratch: Path, items: int, encoder: int) -> Settings:
    """The home of so many items, and what was kept of it."""
    began, place = time.perf_counter(), scratch / f"home-{items}"
    if place.exists():
        uri = f"sqlite:///{place / 'mlflow.db'}"
        return demo.replace(home=place, lake=Lake(str(place / "lake")), tracking_uri=uri, items_token="scale")
    settings = home(demo, place, items, encoder)
    print(f"{items:>9,} items made and published in {time.perf_counter() - began:.0f} s", flush=True)
    return settings


def measure(demo: Settings, scratch: Path, sizes: list[int]) -> dict[int, dict[str, Any]]:
    """All figures of each size."""
    encoder = int(status(demo)["champion"]["encoder"])
    homes = [made(demo, scratch, items, encoder) for items in sizes]
    found = {items: looked(settings, encoder, items) for items, settings in zip(sizes, homes, strict=True)}
    first = max(settings.lake.count("items") for settings in homes)  # a kept home has some of them
    with contextlib.ExitStack() as running_now:
        clients = [running_now.enter_context(running(settings)) for settings in homes]
        rows = {"search_ms": searched(clients), "filtered_ms": searched(clients, category="room 7", price_max="40")}
        pushes = np.array([[pushed(client, first + number) for client in clients] for number in range(2 + PUSHES)])
    rows["push_ms"], rows["findable_s"] = np.median(pushes[2:], axis=0).T.tolist()
    for place, items in enumerate(sizes):
        found[items] |= {name: figures_of[place] for name, figures_of in rows.items()}
    return found


def table() -> dict[str, Any]:
    """Measure, and print it."""
    sizes, keep = [int(size) for size in figures.option("sizes", "10000,1000000").split(",")], figures.option("keep", "")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Settings.from_environment(), Path(keep or folder), sizes)
    first, last = found[sizes[0]], found[sizes[-1]]
    ratios = {f"ratio_{key.rpartition('_')[0]}": last[key] / first[key] for key in first if key.endswith(("_ms", "_s"))}
    for size, row in found.items():
        print(f"{size:>9,} items: " + ", ".join(f"{key} {v:.3f}" if isinstance(v, float) else f"{key} {v}" for key, v in row.items()))
    for name, ratio in ratios.items():
        print(f"{name:18} {ratio:.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**{f"{key}_{size}": v for size, row in found.items() for key, v in row.items()}, **ratios, "peak_gb": peak}


if __name__ == "__main__":
    figures.main(table)
