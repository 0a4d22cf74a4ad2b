"""What a click model costs on many rows: preparation of all of them, also when it was done before, and a bounded number of training steps.

The shop is made up (:mod:`made_up`): an impression for each row, an item for every hundred, a user for every thousand, clicks, queries, and
random vectors. Events are written as they are, without ingest; statistics are derived. Making it and training on it run in processes of
their own, whose peaks the kernel counts: ``peak_mib`` with the pages of mapped files that lay in memory, ``own_mib`` without. Where others
use the processor too, ``rows_per_cpu_s`` is what one core of it alone would do.
``--rows 1000000``, ``--steps 1000``, ``--recipe ctr-cube``, ``--set 'vectors="int8"'``, ``--dim 2048`` numbers a vector (128), ``--keep
DIRECTORY`` for a shop that stays, ``--processes 2`` that train together; ``--json`` prints one object last.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import lance
import made_up
import numpy as np
import pyarrow as pa

from moon_ops.ctr import fit, impressions, processes
from moon_ops.ctr.dataset import encode
from moon_ops.ctr.train import build
from moon_ops.ctr.vocabulary import Vocabulary
from moon_ops.embeddings import as_of, features, vector_tables
from moon_ops.embeddings.vector_tables import as_column
from moon_ops.encoder.together import once
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake, completed
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.lake.statistics import derive
from moon_ops.recipes.ctr import CtrRecipe
from moon_ops.recipes.reading import recipe
from moon_ops.release import click_rows, clicks
from moon_ops.settings import Settings

PER_ITEM, PER_USER, DIM, SECOND = 100, 1000, int(figures.option("dim", "128")), 1_000_000
NOW = made_up.END + dt.timedelta(hours=1)


def _events(rows: int, items: int, asked: list[pa.Table]) -> Iterator[pa.RecordBatch]:
    """The log in time order, a hundred thousand visits at a time; their queries are added to ``asked``."""
    visits, first = rows // made_up.SHOWN, int(made_up.START.timestamp())
    for start in range(0, visits, made_up.PIECE):
        count = min(made_up.PIECE, visits - start)
        low, high = (first + int(86400 * made_up.DAYS * share) for share in (start / visits, (start + count) / visits))
        rng = np.random.default_rng([0, 1, start])
        queries, log = made_up._visits(rng, start, count, (low, high), items, 1)
        asked.append(queries)
        users = rng.integers(0, max(1, rows // PER_USER), count)[log["query_id"].to_numpy() - start]
        log = log.set_column(log.column_names.index("user_id"), "user_id", pa.array(users))
        log = log.set_column(log.column_names.index("event"), "event", log["event"].cast(pa.string()))
        log = log.append_column("created", log["timestamp"]).rename_columns({"timestamp": "event_timestamp"})
        yield from completed(log, "events", SCHEMAS["events"].names).cast(SCHEMAS["events"]).to_batches()


def _make(place: Path, rows: int) -> None:
    """A published shop: items, events, queries, statistics, and vectors."""
    lake, items = Lake(str(place / "lake")), max(100, rows // PER_ITEM)
    made_up.shop(place / "shop", items, 0)
    ingest(place / "shop", lake, now=made_up.START - dt.timedelta(days=1))
    asked: list[pa.Table] = []
    reader = pa.RecordBatchReader.from_batches(SCHEMAS["events"], _events(rows, items, asked))
    lance.write_dataset(reader, lake.address("events"), mode="overwrite" if lake.exists("events") else "create")
    queries = pa.concat_tables(asked).rename_columns({"timestamp": "event_timestamp"})
    queries = queries.append_column("created", queries["event_timestamp"])
    queries = completed(queries, "queries", SCHEMAS["queries"].names).cast(SCHEMAS["queries"])
    lance.write_dataset(queries, lake.address("queries"), mode="overwrite" if lake.exists("queries") else "create")
    derive(lake)
    for name, key, count in (("embeddings/v1", "item_id", items), ("query_embeddings/v1", "query_id", 1)):
        schema = vector_tables.schema_of(name, DIM, "c-bench")
        reader = pa.RecordBatchReader.from_batches(schema, _vectors(schema, key, count))
        lance.write_dataset(reader, lake.address(name), mode="create")
    store = features.open_store(Settings(home=place))
    features.apply(store, place, features.definitions(lake, [1]))


def _vectors(schema: pa.Schema, key: str, count: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, count, 100_000):
        ids = np.arange(start, min(start + 100_000, count))
        vectors = np.random.default_rng(start).normal(size=(len(ids), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        began = pa.array(np.full(len(ids), int(made_up.START.timestamp()) * SECOND - 1)).cast(made_up.STAMP)
        columns = {key: ids, "embedding": as_column(vectors), "event_timestamp": began, "created": began}
        columns |= {"version_id": pa.array(ids).cast(pa.string()), "content_hash": pa.array(["x"] * len(ids))}
        yield from pa.table(columns).select(schema.names).cast(schema).to_batches()


def _prepare(place: Path) -> dict[str, float]:
    """Rows to train on for the first time, and once more as another recipe would ask for them."""
    settings, found = Settings(home=place), dict[str, float]()
    shutil.rmtree(place / "prepared", ignore_errors=True)
    for kind, name in (("first", "ctr-cube"), ("again", "ctr-din")):
        chosen = recipe(CtrRecipe, name, settings.models)
        source = click_rows.source(settings, 1, chosen, (made_up.START, made_up.END))
        began, cpu = time.perf_counter(), time.process_time()
        rows = source.rows(chosen).rows
        found |= {f"{kind}_s": time.perf_counter() - began, f"{kind}_cpu_s": time.process_time() - cpu, "rows": len(rows)}
    files = [file for file in (place / "prepared").rglob("*") if file.is_file()]
    return found | {"bytes_a_row": sum(file.stat().st_size for file in files) / found["rows"]}


def _train(place: Path, steps: int) -> dict[str, float]:
    """What ``moon ctr`` does until its last step, of which there are ``steps``; of these rows per second, from the twentieth on."""
    chosen: CtrRecipe = recipe(CtrRecipe, figures.option("recipe", "ctr-cube"), Settings().models, changes=_changes())
    settings = Settings(home=place)
    found: dict[str, float] = {}
    began, cpu = time.perf_counter(), time.process_time()

    def took(part: str) -> None:
        nonlocal began, cpu
        now = time.perf_counter()
        found[f"{part}_cpu_s"], cpu = time.process_time() - cpu, time.process_time()
        found[f"{part}_s"], found[f"{part}_peak_mib"], found[f"{part}_own_mib"] = now - began, memory("VmHWM"), memory("RssAnon")
        print(
            part,
            round(now - began, 1),
            "s",
            round(found[f"{part}_cpu_s"], 1),
            "CPU",
            round(memory("VmHWM")),
            "MiB,",
            round(memory("RssAnon")),
            "own",
            file=sys.stderr,
        )
        began = time.perf_counter()

    store = features.open_store(settings)
    given = impressions.shown(settings.lake, made_up.START, made_up.END, rule=chosen)
    took("rows")
    joined = as_of.join(store, given.rows, features.service(store, 1))
    took("join")
    tables = clicks.vectors_known(settings, 1, between=(made_up.START, made_up.END), kind=chosen.vectors)
    took("vectors")
    vocabulary = Vocabulary.fit(joined)
    took("vocabulary")
    rows = encode(joined, vocabulary, tables, chosen.behaviors, chosen.top_k)
    took("encode")
    model = build(rows, vocabulary, chosen, 0, processes.join(processes.torch_device(chosen.device)))
    took("model")
    moments: dict[int, tuple[float, float]] = {}
    with _shared_directory(place) as scratch:

        def hear(step: int, _: object) -> None:
            moments.setdefault(step, (time.perf_counter(), time.process_time()))

        done = fit.fit(model, rows, chosen, seed=0, directory=scratch, on_step=hear, steps=steps)
    took("fit")
    first, last = (min(moments), max(moments)) if processes.first() else (0, 0)
    moments.setdefault(0, (0.0, 0.0))
    found |= {"rows": len(rows), "parameters": sum(p.numel() for p in model.parameters()), "loss": done.loss}
    rates = ((last - first) * chosen.batch / max(1e-9, moments[last][kind] - moments[first][kind]) for kind in (0, 1))
    return {**found, **dict(zip(("rows_per_s", "rows_per_cpu_s"), rates, strict=True))}


@contextlib.contextmanager
def _shared_directory(place: Path) -> Iterator[Path]:
    """One for all processes of a training."""
    scratch = Path(once(lambda: tempfile.mkdtemp(dir=place)))
    yield scratch
    once(lambda: shutil.rmtree(scratch))


def _changes() -> list[str]:
    return [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "--set"]


def memory(what: str) -> float:
    """A line of what the kernel says of this process [MiB]."""
    (kib,) = re.findall(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kib) / 1024


def run(place: Path, rows: int, steps: int) -> dict[str, float]:
    """A stage in this process; the greatest memory of its own is looked at ten times a second."""
    own, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            own[0] = max(own[0], memory("RssAnon"))

    threading.Thread(target=look, daemon=True).start()
    began, cpu = time.perf_counter(), time.process_time()
    stages = {"make": lambda: _make(place, rows) or {}, "prepare": lambda: _prepare(place), "train": lambda: _train(place, steps)}
    counted: dict[str, float] = stages[figures.option("stage", "")]()
    ended.set()
    taken = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return {**taken, "peak_mib": memory("VmHWM"), "own_mib": own[0], **counted}


def table() -> dict[str, object]:
    """Measure, and print it."""
    rows, steps = (int(figures.option(name, default)) for name, default in (("rows", "1000000"), ("steps", "1000")))
    count = figures.option("processes", "1")
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count] if count != "1" else []
    found: dict[str, object] = {"rows": rows, "steps": steps, "processes": int(count)}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(figures.option("keep", scratch)) / f"ctr-{rows}-{DIM}"
        place.mkdir(parents=True, exist_ok=True)
        for stage in [*([] if (place / "feature_store").exists() else ["make"]), "prepare", "train"]:
            together = many if stage == "train" else []
            command = [sys.executable, *together, __file__, "--stage", stage, "--place", str(place), *sys.argv[1:]]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{stage}_{name}": value for name, value in one.items()}
            costs = f"{one['seconds']:.1f} s ({one['cpu']:.1f} CPU), peak {one['peak_mib']:,.0f} MiB, {one['own_mib']:,.0f} its own"
            print(
                f"{stage:>6}: {costs}"
                + (f", {one['rows_per_s']:,.0f} rows/s, {one['rows_per_cpu_s']:,.0f} a CPU-second" if stage == "train" else ""),
                flush=True,
            )
    return found


if __name__ == "__main__":
    if "--stage" in sys.argv:  # in a process of its own
        numbers = (int(figures.option(name, default)) for name, default in (("rows", "1000000"), ("steps", "1000")))
        measured = run(Path(figures.option("place", "")), *numbers)
        if processes.first():
            print(json.dumps(measured))
    else:
        figures.main(table)
