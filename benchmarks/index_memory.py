"""Kinds of index by memory: recall@10, bytes of an item, milliseconds of a search, seconds and memory of a build, beside an exact scan.

Each build and each search has a process of its own, so that memory is its own; the vectors (those of ``index.py``) lie in a file, as those
of a shop lie in its tables. ``bytes``: memory of the process's own that opening and 1,000 searches take, of an item; what is mapped from
files, and can be dropped at any moment, is not in it. ``peak``: the most that was resident while it was built, mapped pages and libraries
included; ``own``: of that what is the process's own, looked at every 20 ms. Milliseconds and seconds are of processor time, on one thread,
one query at a time. ``exact``: a scan that reads the vectors piece by piece. ``--items N …``; ``--json`` prints one object last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import figures
import numpy as np
from index import catalogue

from moon_ops.embeddings import index
from moon_ops.embeddings.index import ItemIndex
from moon_ops.embeddings.index_training import scan
from moon_ops.pieces import let_go
from moon_ops.release.index_recall import measured

K, CONTRACT = 10, "c-bench"
KINDS = {
    "8-bit codes": None,
    "product, D/4": 40,
    "product, 28": 36,
    "product, 24": 32,
    "product, D/8": 24,
}  # bytes an item that memory allows, of 128 numbers


def made(place: Path, items: int, hard: bool) -> None:
    """The catalogue and its queries in files."""
    vectors, queries = catalogue(items, hard=hard)
    np.save(place / "vectors.npy", vectors)
    np.save(place / "queries.npy", queries)


def memory(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def built(place: Path, allowed: int | None) -> dict[str, Any]:
    """Build an index from the file; what that took."""
    faiss.omp_set_num_threads(1)
    vectors = np.load(place / "vectors.npy", mmap_mode="r")
    own, done = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            own.append(memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = time.process_time()
    header = index.build(place / "index", np.arange(len(vectors)), vectors, CONTRACT, memory=allowed and allowed * len(vectors))
    seconds = time.process_time() - before
    done.set()
    watcher.join()
    disk = sum(file.stat().st_size for file in (place / "index").resolve().iterdir())
    return {
        "build_s": seconds,
        "peak_gb": memory("VmHWM") / 1e9,
        "own_peak_gb": max(own) / 1e9,
        "reason": header.reason,
        "disk_gb": disk / 1e9,
    }


def searched(place: Path) -> dict[str, Any]:
    """What the index finds, and what it takes."""
    faiss.omp_set_num_threads(1)
    queries = np.load(place / "queries.npy")
    before = memory("RssAnon")
    opened = ItemIndex.open(place / "index")
    times = timed(lambda query: opened.search(query, K, CONTRACT), queries)
    held = memory("RssAnon") - before
    return {**measured([opened], queries), "bytes": held / opened.header.items, **times}


def scanned(place: Path) -> dict[str, Any]:
    """The exact scan of a file."""
    faiss.omp_set_num_threads(1)
    vectors, queries = np.load(place / "vectors.npy", mmap_mode="r"), np.load(place / "queries.npy")
    times = timed(lambda query: scan(query, vectors, K), queries[:20])
    let_go(vectors)
    return {"index/recall@10": 1.0, "bytes": 0.0, **times}


def timed(search: Callable[[Any], object], queries: Any) -> dict[str, float]:
    """Milliseconds of processor time of single queries, after one."""
    search(queries[:1])
    took = []
    for query in queries:
        began = time.thread_time()
        search(query[None])
        took.append(1000 * (time.thread_time() - began))
    return {"p50_ms": float(np.median(took)), "p99_ms": float(np.percentile(took, 99))}


def table() -> dict[str, Any]:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description="Kinds of index by memory, beside an exact scan.")
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(f"{'items':>12} {'kind':14}{'recall@10':>10}{'bytes':>8}{'p50 ms':>9}{'p99 ms':>9}{'build s':>9}{'peak GB':>9}{'own GB':>8}")
    rows: dict[str, Any] = {}
    fresh = multiprocessing.get_context("spawn")
    for items in given.items:
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as alone:
            place = Path(folder)
            alone.submit(made, place, items, given.hard).result()
            found: dict[str, dict[str, Any]] = {"exact": alone.submit(scanned, place).result()}
            for kind, allowed in KINDS.items():
                found[kind] = alone.submit(built, place, allowed).result()
                found[kind] |= alone.submit(searched, place).result()
            for kind, row in found.items():
                rows[f"{items}: {kind}"] = row
                shown = [row.get(key, 0.0) for key in ("build_s", "peak_gb", "own_peak_gb")]
                print(
                    f"{items:12,} {kind:14}{row['index/recall@10']:10.4f}{row['bytes']:8.1f}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}",
                    end="",
                )
                print(f"{shown[0]:9.1f}{shown[1]:9.2f}{shown[2]:8.2f}", flush=True)
    return rows


if __name__ == "__main__":
    figures.main(table)
