"""What it costs to hold an index in two services: `/v1/search` of one that holds all, against one that holds half and asks another.

Runs after `make demo`, on temporary copies of its home, whose index is replaced by one of ``--items`` made-up vectors (the first numbers of
those of ``benchmarks/index.py``), with cards made up likewise. Three `moon serve`, each a process of its own: one with the whole index, a
front with shard 0, and the one that it asks for shard 1. Both kinds are asked in turn, ``SEARCHES`` texts each, by one client over a kept
connection, so that both meet the same other work; then by ``CLIENTS`` at once, each kind for itself. ``mb`` is the memory of the process
alone (RssAnon), ``shared`` the share of the ten found that both find: shards of lists are trained by themselves, and a text of the demo's
encoder is like none of the made-up vectors, so approximate indexes find others now and then. All processes share this machine; two services
on machines of their own have twice the cores. ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import httpx
import index as nearest
import numpy as np
import serving_scale as scale

from moon_ops.embeddings import cards, index_shards
from moon_ops.embeddings.index import IndexHeader
from moon_ops.embeddings.prefixes import cut
from moon_ops.publication import places
from moon_ops.release.status import status
from moon_ops.settings import Settings

SEARCHES, WARM, CLIENTS, K = 600, 60, 8, 10
WAIT_SECONDS = 180.0


def home(demo: Settings, place: Path, items: int, shards: int) -> Settings:
    """A copy of the demo's home that finds made-up items alone, in so many shards."""
    shutil.copytree(demo.home, place, symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report", "receipts"))
    settings = demo.replace(home=place)
    encoder = int(status(demo)["champion"]["encoder"])
    there = IndexHeader.read(places.index_place(demo, encoder))
    ids, vectors = scale.FIRST + np.arange(items), cut(nearest.catalogue(items, hard=False)[0], there.dim)
    index_shards.build(places.index_place(settings, encoder), ids, vectors, there.contract_id, shards=shards)
    when = scale.dt.datetime.now(scale.dt.UTC)
    chunks = (scale.rows(at, min(scale.CHUNK, items - at), when).select(list(cards.COLUMNS)) for at in range(0, items, scale.CHUNK))
    cards.build(places.cards_place(settings, encoder), chunks)
    return settings


@contextlib.contextmanager
def serving(place: Path, log: Path, **told: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`moon serve` over the home, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    told = {"MOON_HOME": str(place), "MOON_PORT": str(port), "MOON_WORKERS": "1", "MOON_QUEUE": "64", **told}
    with log.open("wb") as out:
        started = subprocess.Popen([sys.executable, "-m", "moon_ops.cli", "serve"], stdout=out, stderr=out, env={**os.environ, **told})
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:
                    break
            assert started.poll() is None, log.read_text()
            time.sleep(0.2)
        yield started, url
    finally:
        started.terminate()
        started.wait(60)


def text(number: int) -> str:
    return " ".join(scale.WORDS[(number * step + step) % len(scale.WORDS)] for step in (1, 3, 7))


def asked(client: httpx.Client, number: int, **more: str) -> tuple[float, list[int]]:
    """Milliseconds of a search, and what it finds."""
    began = time.perf_counter()
    answer = client.post("/v1/search", data={"text": text(number), "k": str(K), **more})
    taken = 1e3 * (time.perf_counter() - began)
    assert answer.status_code == 200, answer.text
    return taken, [item["item_id"] for item in answer.json()["items"]]


def in_turn(urls: dict[str, str], **more: str) -> tuple[dict[str, np.ndarray[Any, Any]], float]:
    """Milliseconds of each search by kind, and the share of what is found that both find."""
    taken, same = {kind: np.zeros(SEARCHES) for kind in urls}, 0.0
    with contextlib.ExitStack() as stack:
        clients = {kind: stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False)) for kind, url in urls.items()}
        for number in range(-WARM, SEARCHES):
            found = {kind: asked(client, number + WARM, **more) for kind, client in clients.items()}
            if number >= 0:
                for kind, (ms, _) in found.items():
                    taken[kind][number] = ms
                same += len(set.intersection(*(set(ids) for _, ids in found.values()))) / K
    return taken, same / SEARCHES


def at_once(url: str) -> float:
    """Searches a second of :data:`CLIENTS`."""

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for number in range(SEARCHES // CLIENTS):
                asked(client, first + number)

    threads = [threading.Thread(target=ask, args=(client * SEARCHES,)) for client in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return SEARCHES / (time.perf_counter() - began)


def megabytes(process: subprocess.Popen[bytes]) -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1000 if found else 0.0


def measure(demo: Settings, scratch: Path, items: int) -> dict[str, Any]:
    """All figures."""
    one, two = (home(demo, scratch / f"home-{shards}", items, shards) for shards in (1, 2))
    dealt = {"MOON_INDEX_SHARDS": "2"}
    with contextlib.ExitStack() as stack:
        whole, whole_url = stack.enter_context(serving(one.home, scratch / "whole.log"))
        holder, holder_url = stack.enter_context(serving(two.home, scratch / "holder.log", MOON_INDEX_SHARD="1", **dealt))
        named = {"MOON_INDEX_SHARD": "0", "MOON_INDEX_PEERS": f"1={holder_url}", **dealt}
        front, front_url = stack.enter_context(serving(two.home, scratch / "front.log", **named))
        urls = {"whole": whole_url, "front": front_url}
        found: dict[str, Any] = {"items": items, "kind": _kind(one)}
        for name, more in (("search", {}), ("filtered", {"category": "room 7", "price_max": "40"})):
            taken, found[f"{name}_shared"] = in_turn(urls, **more)
            for kind, ms in taken.items():
                found |= {f"{name}_{kind}_p50_ms": float(np.median(ms)), f"{name}_{kind}_p99_ms": float(np.percentile(ms, 99))}
        found |= {f"{kind}_a_second": at_once(url) for kind, url in urls.items()}
        return found | {f"{name}_mb": megabytes(p) for name, p in (("whole", whole), ("front", front), ("holder", holder))}


def _kind(settings: Settings) -> str:
    encoder = int(status(settings)["champion"]["encoder"])
    header = IndexHeader.read(places.index_place(settings, encoder))
    return f"{header.kind} of {header.dim}"


def table() -> dict[str, Any]:
    """Measure, and print it."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Settings.from_environment(), Path(folder), int(figures.option("items", "300000")))
    for name, value in found.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    return found


if __name__ == "__main__":
    figures.main(table)
