"""Nearest-item search on one core: ours beside a plain inverted file of FAISS and an exact scan, on made-up item vectors.

ours: ``moon_ops.embeddings.index`` with 5 % of its items new and 5 % changed since the base was built (so a tenth of the items is in the
delta), then the same items compacted, both searching as many lists; peer: ``index_factory("IVF<4 sqrt N>,Flat")``, probing as few lists as
reach ours' recall (HNSW32 is no peer here: a million items take longer to build than all of this takes to run); limit: an exact scan. Every
latency is that of single queries after a warm-up, on one thread, alternating between the indexes; the best of ``ROUNDS`` rounds is kept,
because other processes slow some of them. ``cpu`` latencies leave out the time in which this thread had to wait for a core.

Vectors are a mixture like a catalogue's: 300 categories of uneven size, N / 8 products, items around products, in 128 dimensions whose
spread falls as 1 / n^0.8, so that few of them matter (Levina and Bickel's estimate of the local dimension is 13). A query is an item, moved
as far as items of a product lie apart; in four of five cases that item is its nearest. ``--hard``: the spread falls as 1 / n^0.4 and
products and items lie further apart (local dimension 17). ``--items N`` for another size, ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import figures
import numpy as np
from numpy.typing import NDArray

from moon_ops.embeddings import index
from moon_ops.embeddings.index import ItemIndex

DIM, K, QUERIES, TIMED, WARM, ROUNDS = 128, 10, 1000, 500, 100, 7
Floats = NDArray[np.float32]
Search = Callable[[Floats], NDArray[np.int64]]


def pieces(rng: np.random.Generator, items: int, *, hard: bool) -> Iterator[Floats]:
    """Made-up items in pieces [≤ 65,536, D], not yet of length 1; what is in memory are their products."""
    item, spread = _spread(hard)
    categories = rng.standard_normal((300, DIM), np.float32) * spread
    products = categories[rng.choice(300, max(items // 8, 1), p=rng.dirichlet(np.full(300, 0.5)))]
    products += (0.9 if hard else 0.7) * spread * rng.standard_normal(products.shape, np.float32)
    popular = np.arange(1, len(products) + 1) ** -0.5
    of = rng.choice(len(products), items, p=popular / popular.sum())
    for at in range(0, items, 65_536):
        part = products[of[at : at + 65_536]]
        part += item * spread * rng.standard_normal(part.shape, np.float32)
        yield part


def _spread(hard: bool) -> tuple[float, Floats]:
    """How far items of a product lie apart, and in which directions [D]."""
    spread = np.arange(1, DIM + 1) ** -(0.4 if hard else 0.8)
    return 0.6 if hard else 0.35, (spread / np.linalg.norm(spread)).astype(np.float32)


def catalogue(items: int, *, hard: bool, seed: int = 0) -> tuple[Floats, Floats]:
    """Unit vectors [N, D] of made-up items and [QUERIES, D] of queries that are not among them."""
    rng = np.random.default_rng(seed)
    vectors, at = np.empty((items, DIM), np.float32), 0
    for part in pieces(rng, items, hard=hard):
        vectors[at : at + len(part)] = part
        at += len(part)
    item, spread = _spread(hard)
    queries = vectors[rng.choice(items, QUERIES)] + item * spread * rng.standard_normal((QUERIES, DIM), np.float32)
    for some in (vectors, queries):
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return vectors, queries


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(f) & set(w)) / K for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]))


def latencies(searches: dict[str, Search], queries: Floats) -> dict[str, dict[str, float]]:
    """Milliseconds of single queries: the best p50 and p99 of the rounds, on the wall's clock and on the thread's."""
    best: dict[str, dict[str, float]] = {name: {} for name in searches}
    for _ in range(ROUNDS):
        for name, search in searches.items():
            count = WARM + (TIMED if name != "limit" else 20)
            times = np.array([_timed(search, queries[i % len(queries)][None]) for i in range(count)])[WARM:] * 1e3
            for column, kind in enumerate(("", "_cpu")):
                for q in (50, 99):
                    key, value = f"p{q}{kind}_ms", float(np.percentile(times[:, column], q))
                    best[name][key] = min(best[name].get(key, np.inf), value)
    return best


def _timed(search: Search, query: Floats) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    search(query)
    return time.perf_counter() - wall, time.thread_time() - cpu


def peer(vectors: Floats, queries: Floats, wanted: NDArray[np.int64], floor: float, seconds: dict[str, float]) -> Search:
    """A plain inverted file of the same vectors; its recall is at least ``floor``."""
    lists = int(4 * len(vectors) ** 0.5)
    with clock(seconds, "peer"):
        plain = faiss.index_factory(DIM, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        plain.cp.max_points_per_centroid, plain.cp.min_points_per_centroid = 64, 1
        plain.train(vectors)
        plain.add(vectors)
    for plain.nprobe in (*range(4, 64, 4), *range(64, lists, 16)):
        if recall(plain.search(queries, K)[1], wanted) >= floor:
            break
    return lambda query: plain.search(query, K)[1]


def measure(items: int, *, hard: bool, scratch: Path) -> dict[str, object]:
    """Recall, latency, building and refreshing; the changed and new items are the last tenth."""
    threads = faiss.omp_get_max_threads()
    vectors, queries = catalogue(items, hard=hard)
    ids = np.random.default_rng(1).permutation(items).astype(np.int64) * 7_919 + 2**40
    new, changed = items - items // 20, items - items // 10
    old = vectors[:new].copy()
    old[changed:] = np.roll(old[changed:], 1, axis=0)  # the changed items' vectors before
    seconds: dict[str, float] = {}
    with clock(seconds, "build"):
        built = index.build(scratch / "v1", ids[:new], old, "c-bench")
    del old
    with clock(seconds, "open"):
        base = ItemIndex.open(scratch / "v1")
    with clock(seconds, "update"):
        updated = index.update(scratch / "v1", ids[changed:], vectors[changed:], np.zeros(0, np.int64), "c-bench")
    with clock(seconds, "refresh"):
        delta = ItemIndex.open(scratch / "v1", base)
    with clock(seconds, "compact"):
        compacted = index.compact(scratch / "v1")
    whole = ItemIndex.open(scratch / "v1")
    delta.searcher.probes = whole.header.probes  # what the delta costs, whatever was chosen for each base
    with clock(seconds, "update_100"):
        index.update(scratch / "v1", ids[:100], vectors[:100], np.zeros(0, np.int64), "c-bench")
    with clock(seconds, "refresh_100"):
        ItemIndex.open(scratch / "v1", whole)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    wanted = flat.search(queries, K)[1]
    ours: dict[str, Search] = {
        "ours": lambda query: whole.search(query, K, "c-bench")[0],
        "ours_delta": lambda query: delta.search(query, K, "c-bench")[0],
    }
    found = {name: recall(search(queries), ids[wanted]) for name, search in ours.items()}
    plain = peer(vectors, queries, wanted, found["ours"], seconds)
    found |= {"peer": recall(plain(queries), wanted), "limit": 1.0}
    faiss.omp_set_num_threads(1)
    times = latencies({**ours, "peer": plain, "limit": lambda query: flat.search(query, K)[1]}, queries)
    faiss.omp_set_num_threads(threads)
    rows = {name: {"recall": found[name], **times[name]} for name in times}
    return {
        "items": items,
        "hard": hard,
        **rows["ours"],
        "probe": index.probe(delta, 200, K),
        "build_per_s": built.base_items / seconds["build"],
        "delta_cost": times["ours_delta"]["p50_ms"] / times["ours"]["p50_ms"],
        "delta_cost_cpu": times["ours_delta"]["p50_cpu_ms"] / times["ours"]["p50_cpu_ms"],
        **{f"{name.removeprefix('ours_')}_{key}": value for name, row in rows.items() if name != "ours" for key, value in row.items()},
        "peer_build_per_s": items / seconds["peer"],
        "ratio_peer": times["peer"]["p50_ms"] / times["ours"]["p50_ms"],
        "ratio_limit": times["limit"]["p50_ms"] / times["ours"]["p50_ms"],
        **{f"{name}_s": value for name, value in seconds.items()},
        "threads": threads,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "due": index.compaction_due(updated),
        "probes_base": built.probes,
        "probes": compacted.probes,
        "reason": compacted.reason,
    }


def table() -> dict[str, Any]:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description="Nearest-item search on one core, beside a plain inverted file and an exact scan.")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.items, hard=given.hard, scratch=Path(folder))
    print(f"{'':18}{'recall@10':>10}{'p50 ms':>9}{'p99 ms':>9}{'p50 cpu':>9}{'p99 cpu':>9}")
    for name, prefix in {"ours": "", "ours, 10 % delta": "delta_", "peer (IVF, Flat)": "peer_", "limit (exact)": "limit_"}.items():
        keys = ("recall", "p50_ms", "p99_ms", "p50_cpu_ms", "p99_cpu_ms")
        print(f"{name:18}" + "".join(f"{found[prefix + key]:{10 if key == 'recall' else 9}.3f}" for key in keys))
    for key, value in found.items():
        if not key.endswith(("_ms", "recall")):
            print(f"{key:18} {value:,.3f}" if isinstance(value, float) else f"{key:18} {value}")
    return found


if __name__ == "__main__":
    figures.main(table)
