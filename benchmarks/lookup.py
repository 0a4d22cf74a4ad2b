"""Milliseconds to look up the vectors of 100 items: Feast's SDK on SQLite and on Redis, and the representation table (after `make demo`).

Beside them what Redis alone takes for an MGET of the same bytes: the limit of any online store on it. Redis is started for the run, from
PATH. p50 and p99 over ``ROUNDS`` random sets of items, one at a time. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import figures
import numpy as np
import redis
from feast import FeatureStore
from numpy.typing import NDArray

from moon_ops.embeddings import features, handover
from moon_ops.errors import ServiceError
from moon_ops.publication import places
from moon_ops.release.status import status
from moon_ops.settings import Settings

ITEMS, ROUNDS, WARM = 100, 1000, 50


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of its own, which keeps nothing; its address."""
    if shutil.which("redis-server") is None:
        raise ServiceError("redis-server is not in PATH", action="install Redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", tempfile.gettempdir()]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        for _ in range(100):
            with contextlib.suppress(redis.exceptions.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def timed(look_up: Callable[[NDArray[np.int64]], object], ids: NDArray[np.int64]) -> tuple[float, float]:
    """p50 and p99 [ms]."""
    generator, taken = np.random.default_rng(0), []
    for _ in range(WARM + ROUNDS):
        some = generator.choice(ids, ITEMS, replace=False)
        began = time.perf_counter()
        look_up(some)
        taken.append(1000 * (time.perf_counter() - began))
    p50, p99 = np.percentile(taken[WARM:], [50, 99])
    return float(p50), float(p99)


def sdk(store: FeatureStore, encoder: int) -> Callable[[NDArray[np.int64]], object]:
    """A look-up through Feast's SDK."""
    reference = [f"item_embedding_v{encoder}:embedding"]
    return lambda ids: store.get_online_features(reference, {"item_id": ids.tolist()}).to_dict()


def measure(settings: Settings) -> dict[str, float]:
    """Every path on the same items."""
    encoder = status(settings)["champion"]["encoder"]
    table = places.tables(settings, encoder).items
    ids, vectors = table.all()
    out = {"dim": float(table.dim)}

    def note(name: str, look_up: Callable[[NDArray[np.int64]], object]) -> None:
        out[f"{name}_p50_ms"], out[f"{name}_p99_ms"] = timed(look_up, ids)

    note("table", lambda some: table.gather(table.rows(some)))
    note("sdk_sqlite", sdk(features.open_store(settings), encoder))
    with redis_server() as address, tempfile.TemporaryDirectory() as scratch:
        client = redis.Redis.from_url(f"redis://{address}")
        client.mset({f"v{i}": v.tobytes() for i, v in zip(ids, vectors, strict=True)})
        note("redis_raw", lambda some: client.mget([f"v{i}" for i in some]))
        other = settings.replace(home=Path(scratch), redis=address)
        store = features.open_store(other)
        features.apply(store, other.home, features.definitions(settings.lake, [encoder]))
        view = store.get_feature_view(f"item_embedding_v{encoder}")
        handover.online(store, view, features.dataset_of(view), handover.Since(), dt.datetime.now(dt.UTC))
        note("sdk_redis", sdk(store, encoder))
    return out


def table() -> dict[str, float]:
    """Measure, and print it."""
    found = measure(Settings.from_environment())
    print(f"{ITEMS} items x {found['dim']:.0f}-d{'':10} p50 [ms]  p99 [ms]")
    for name in ("table", "sdk_sqlite", "sdk_redis", "redis_raw"):
        print(f"{name:24} {found[f'{name}_p50_ms']:8.3f}  {found[f'{name}_p99_ms']:8.3f}")
    return found


if __name__ == "__main__":
    figures.main(table)
