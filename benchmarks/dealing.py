"""What it costs to let Ray work on parts: statistics, pairs, impressions and their features, here and by one worker or two.

A made-up shop (:mod:`made_up`), taken in once, and each way in a process of its own on a copy of the lake. ``cpu`` is of all processes
together, Ray's own among them; ``peak_mib`` is of the process that deals, ``worker_mib`` of the largest worker. ``begin`` is what Ray takes
before the first part; ``join`` is the impressions of 60 days and what was known of each. All ways end with the same rows, which is checked.
``--items 100000 --events 1000000``, ``--part 125000`` events in a part (in a shop it is a million of statistics and pairs, and four million
of impressions); ``--keep DIRECTORY`` for a shop that stays; ``--json`` prints one object last.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import figures
import made_up
import pandas as pd
import pyarrow as pa
from feast import FeatureService, FeatureStore

from moon_ops import dealing, pieces
from moon_ops.ctr.impressions import shown
from moon_ops.embeddings import as_of, features
from moon_ops.encoder.pairs import behaviour
from moon_ops.lake import counting, event_log, statistics
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.settings import Settings

WAYS = ("local", "ray 1", "ray 2")
STAGES = ("statistics", "pairs", "join")
TICKS = os.sysconf("SC_CLK_TCK")


def _tree() -> list[int]:
    """This process and all that it has started, directly or not."""
    above = {}
    for entry in Path("/proc").iterdir():
        try:
            above[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):
            continue
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in above.items() if parent == pid]
    return found


def _cpu() -> float:
    """Seconds that they have taken."""
    told = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _tree()]
    return sum(int(one[11]) + int(one[12]) for one in told) / TICKS


def _peak(pid: int) -> float:
    """MiB at the most."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def _workers() -> list[int]:
    return [pid for pid in _tree() if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _digest(tables: Iterable[pa.Table]) -> str:
    """Of the rows, in their order."""
    seen = hashlib.sha256()
    for table in tables:
        seen.update(pd.util.hash_pandas_object(table.to_pandas(), index=False).to_numpy().tobytes())
    return seen.hexdigest()


def _store(home: Path, lake: Lake) -> FeatureStore:
    """Feast over the derived tables."""
    store, things = features.open_store(Settings(home=home)), features.definitions(lake, [])
    views = [thing for thing in things if hasattr(thing, "batch_source")]
    features.apply(store, home, [*things, FeatureService(name="ctr_v0", features=views)])
    return store


def _stages(home: Path, deal: dealing.Deal) -> dict[str, Callable[[], Iterable[pa.Table]]]:
    """Each stage, and what it has made, read when it is asked for."""
    lake = Lake(str(home / "lake"))

    def derive() -> Iterable[pa.Table]:
        statistics.derive(lake, deal=deal)
        return (lake.read(name) for name in statistics.TABLES[:3])

    def pairs() -> Iterable[pa.Table]:
        found = behaviour(lake, made_up.END, deal=deal)
        return [pa.table({"query": found.query, "item": found.item, "event": found.event})]

    def join() -> Iterable[pa.Table]:
        rows = shown(lake, made_up.START, made_up.END, deal=deal).rows
        joined = as_of.join(store[0], rows, features.service(store[0], 0), deal=deal)
        return (joined.table([*rows.column_names, "clicks", "price"]) for _ in range(1))

    def publish() -> Iterable[pa.Table]:
        store.append(_store(home, lake))
        return ()

    store: list[FeatureStore] = []
    return {"statistics": derive, "pairs": pairs, "publish": publish, "join": join}


def run(way: str, home: Path, part: int) -> dict[str, Any]:
    """All stages in one way."""
    event_log.AT_ONCE = counting.AT_ONCE = part
    pieces.LONG = pieces.AT_ONCE = part
    kind, _, count = way.partition(" ")
    found: dict[str, Any] = {}
    deal = dealing.dealer(kind, int(count or 1))
    if kind == "ray":
        began = time.perf_counter()
        list(deal(str, range(2)))
        found |= {"begin_s": time.perf_counter() - began, "begin_cpu": _cpu()}
    for name, stage in _stages(home, deal).items():
        began, cpu = time.perf_counter(), _cpu()
        made = stage()
        found |= {f"{name}_s": time.perf_counter() - began, f"{name}_cpu": _cpu() - cpu, f"{name}_rows": _digest(made)}
    found["peak_mib"] = _peak(os.getpid())
    if workers := _workers():
        found["worker_mib"] = max(map(_peak, workers))
    return found


def _measured(place: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in WAYS:
        home = place / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(place / "lake", home / "lake")
        command = [sys.executable, __file__, "--way", way, "--home", str(home), "--part", part]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found |= {f"{way}_{name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    for name in (*STAGES, "publish"):
        assert len({found.pop(f"{way}_{name}_rows") for way in WAYS}) == 1, f"{name}: other rows"
    return found


def table() -> dict[str, Any]:
    """Measure, and print it."""
    items, events, part = (figures.option(*one) for one in (("items", "100000"), ("events", "1000000"), ("part", "125000")))
    home = Settings.from_environment().home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        place = Path(figures.option("keep", folder))
        if not (place / "lake").exists():
            made_up.shop(place / "shop", int(items), int(events))
            ingest(place / "shop", Lake(str(place / "lake")), now=made_up.END + dt.timedelta(hours=1))
        found = _measured(place, part)
    print(f"{int(items):,} items, {int(events):,} events, {int(part):,} in a part: seconds (of all processors)")
    for way in WAYS:
        cells = [f"{name} {found[f'{way}_{name}_s']:.1f} ({found[f'{way}_{name}_cpu']:.1f})" for name in STAGES]
        begun = f"begin {found[f'{way}_begin_s']:.1f} ({found[f'{way}_begin_cpu']:.1f}), " if f"{way}_begin_s" in found else ""
        memory = f"{found[f'{way}_peak_mib']:,.0f} MiB; a worker {found.get(f'{way}_worker_mib', 0):,.0f}"
        print(f"{way:>6}: {begun}{', '.join(cells)}; {memory}")
    return {"items": int(items), "events": int(events), "part": int(part), **found}


if __name__ == "__main__":
    if "--way" in sys.argv:  # in a process of its own
        print(json.dumps(run(figures.option("way", ""), Path(figures.option("home", "")), int(figures.option("part", "")))))
    else:
        figures.main(table)
