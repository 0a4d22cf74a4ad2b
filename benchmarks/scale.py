"""What a large shop costs: ingest, derived tables, publication, reads, a night and an increment.

Each runs in a process of its own, whose peak the kernel counts. The shop is made up (:mod:`made_up`) in a scratch directory beside
``MOON_HOME``, which is removed. ``--items 100000 --events 1000000``,
``--parts ingest,derive,read,night,increment``, ``--keep DIRECTORY`` for a shop and a lake that stay; ``--json`` prints one object last.
Compare sizes on one core (``taskset -c 0``). A night is one more day of events, with its derivation; an increment is 1,000 new items.

``--parts vectors,publish,night,republish,increment,arrive`` publishes, too: *vectors* writes one of 128 numbers for each item, as an
encoder would, *publish* hands everything over to Feast's online store (SQLite, or what ``MOON_REDIS`` names), the representation
table, the cards and the index; *republish* what a night has changed, *arrive* the new items. Queries have no vectors.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import figures
import made_up
import numpy as np
import pyarrow as pa

from moon_ops.ctr import impressions
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.statistics import derive
from moon_ops.release.windows import windows
from moon_ops.settings import Settings

PARTS = ("ingest", "derive", "read", "night", "increment")
MORE = ("ingest", "derive", "vectors", "publish", "read", "night", "republish", "increment", "arrive")  # in the order in which they run
CHUNK = 65_536  # vectors made at a time
NEW, HOUR = 1000, dt.timedelta(hours=1)


def _take_in(place: Path, shop: str, after: dt.timedelta) -> dict[str, float]:
    report = ingest(place / shop, Lake(str(place / "lake")), now=made_up.END + after)
    return {"items": report.items, "events": report.events, "refused": sum(report.refused.values())}


def _first(place: Path) -> dict[str, float]:
    return _take_in(place, "shop", HOUR)


def _derive(place: Path) -> dict[str, float]:
    report = derive(Lake(str(place / "lake")))
    return {"item_stats": report.item_stats, "user_behavior": report.user_behavior}


def _read(place: Path) -> dict[str, float]:
    """The windows, and the impressions of the last week."""
    lake = Lake(str(place / "lake"))
    found = windows(lake)
    rows = impressions.impressions(lake, found.end - dt.timedelta(days=7), found.end)
    return {"impressions": rows.num_rows}


def _night(place: Path) -> dict[str, float]:
    began, taken = time.perf_counter(), _take_in(place, "night", dt.timedelta(days=1, hours=1))
    middle = time.perf_counter()
    return {"events": taken["events"], **_derive(place), "ingest_s": middle - began, "derive_s": time.perf_counter() - middle}


def _increment(place: Path) -> dict[str, float]:
    """New items alone, and what of the derived tables does not wait for the night."""
    began, taken = time.perf_counter(), _take_in(place, "new", dt.timedelta(days=1, hours=2))
    middle = time.perf_counter()
    derive(Lake(str(place / "lake")), behaviour=False)
    return {"items": taken["items"], "ingest_s": middle - began, "derive_s": time.perf_counter() - middle}


@dataclass(frozen=True)
class _Kind:
    """Of which encoder the made-up vectors are."""

    dim: int = 128
    contract_id: str = "c-scale"


def _vectors(place: Path) -> dict[str, float]:
    """A vector for each item that has none yet, as those of ``index.py``: many items near each other, and few directions that matter."""
    from index import pieces  # here, and below: FAISS, Feast and torch are in no other part's memory

    from moon_ops.embeddings import vector_tables
    from moon_ops.lake import changes, lookups

    lake, kind, name = Lake(str(place / "lake")), _Kind(), vector_tables.table_name(1)
    for table in (name, vector_tables.query_table_name(1), vector_tables.excused_table_name(1)):
        vector_tables.create(lake, table, kind)
    known, total = lake.open(name).count_rows(), lake.open("items").count_rows()
    made, left = pieces(np.random.default_rng([1, known]), total - known, hard=False), np.zeros((0, kind.dim), np.float32)
    for batch in lake.open("items").to_batches(columns=[*vector_tables.KEY, "created"], batch_size=CHUNK, offset=known):
        while len(left) < batch.num_rows:
            left = np.concatenate([left, next(made)])
        own, left = left[: batch.num_rows], left[batch.num_rows :]
        rows = pa.table(batch).append_column("embedding", vector_tables.as_column(own / np.linalg.norm(own, axis=1, keepdims=True)))
        rows = rows.append_column("version_id", vector_tables.version_ids(rows))
        schema = lake.open(name).schema
        lake.append(name, rows.select(schema.names).cast(schema))
    lookups.tend(lake, name)  # as an embedding ends
    changes.mark(lake, name, items=changes.newest(lake.open("items")))
    return {"vectors": total - known}


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """CPU-seconds of each part of a publication, as it goes."""
    from moon_ops.publication import item_cards, publication, shop_ids

    spent: dict[str, float] = {}

    def around(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            found = work(*given, **named)
            part = f"{given[2] if name == 'online' else name}_s"
            spent[part] = spent.get(part, 0.0) + time.process_time() - began
            print(f"{'':>11}{part[:-2]}: {spent[part]:.1f} s", file=sys.stderr, flush=True)
            return found

        return timed

    places = {"online": (publication, "online_view"), "ids": (shop_ids, "publish"), "table": (publication, "_table")}
    places |= {"cards": (item_cards, "publish"), "index": (publication, "_fresh_index")}
    with contextlib.ExitStack() as all_of_them:
        for name, (where, function) in places.items():
            all_of_them.enter_context(mock.patch.object(where, function, around(name, getattr(where, function))))
        yield spent


def _publish(place: Path, after: dt.timedelta, behaviour: bool = True) -> dict[str, float]:
    from moon_ops.publication import publication

    with _timed() as parts:
        settings = Settings.from_environment(home=place)
        found = publication.publish(settings, 1, now=made_up.END + after, behaviour=behaviour)
    return {"items": found.items, "changed": found.changed, "online_mib": size(place / "feature_store"), **parts}


def _arrive(place: Path) -> dict[str, float]:
    _vectors(place)
    return _publish(place, dt.timedelta(days=1, hours=2), behaviour=False)


def _make(place: Path) -> dict[str, float]:
    items, events = (int(figures.option(name, "0")) for name in ("items", "events"))
    made_up.shop(place / "shop", items, events)
    made_up.shop(place / "night", 0, max(1, events // made_up.DAYS), of=items, first=made_up.END, days=1, queries_from=events)
    made_up.shop(place / "new", NEW, 0, items_from=items)
    return {}


STAGES: dict[str, Callable[[Path], dict[str, float]]] = {
    "make": _make,
    "ingest": _first,
    "derive": _derive,
    "vectors": _vectors,
    "publish": lambda place: _publish(place, HOUR),
    "read": _read,
    "night": _night,
    "republish": lambda place: _publish(place, dt.timedelta(days=1, hours=1)),
    "increment": _increment,
    "arrive": _arrive,
}


def run(stage: str, place: Path) -> dict[str, float]:
    """Run a stage in this process: wall and CPU seconds, its peak [MiB], MiB written, and what it counted."""
    if stage in ("publish", "republish", "arrive"):
        import moon_ops.publication.publication  # noqa: F401  # seconds that are no shop's

    before, began, cpu = size(place), time.perf_counter(), time.process_time()
    counted = STAGES[stage](place)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # unlike ru_maxrss, without the parent's
    return {"seconds": seconds, "cpu": cpu, "peak_mib": int(peak) / 1024, "grown_mib": size(place) - before, **counted}


def size(place: Path) -> float:
    """MiB of the files under a directory."""
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 2**20


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    if kept := figures.option("keep", ""):
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    home = Settings.from_environment().home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        yield Path(folder)


def _line(part: str, one: dict[str, float], rows: int | None) -> str:
    """A stage's figures, and ``rows`` a second."""
    speed = f", {rows / one['seconds']:,.0f} rows/s" if rows else ""
    more = ", ".join(f"{name} {value:,.4g}" if name.endswith("_s") else f"{name} {value:,.0f}" for name, value in [*one.items()][4:])
    costs = f"{one['seconds']:7.1f} s ({one['cpu']:.1f} CPU), peak {one['peak_mib']:,.0f} MiB, disk {one['grown_mib']:+,.0f} MiB"
    return f"{part:>9}: {costs}{speed}; {more}"


def table() -> dict[str, object]:
    """Measure, and print it."""
    items, events = (int(figures.option(name, default)) for name, default in (("items", "100000"), ("events", "1000000")))
    parts = [part for part in MORE if part in figures.option("parts", ",".join(PARTS)).split(",")]
    found: dict[str, object] = {"items": items, "events": events}
    print(f"{items:,} items, {events:,} events")
    with _scratch() as place:
        for part in [*([] if (place / "new").exists() else ["make"]), *parts]:
            command = [sys.executable, __file__, "--stage", part, "--place", str(place), "--items", str(items), "--events", str(events)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{part}_{name}": value for name, value in one.items()}
            print(_line(part, one, {"ingest": items + events, "derive": events, "read": events, "publish": items}.get(part)), flush=True)
    return found


if __name__ == "__main__":
    if "--stage" in sys.argv:  # in a process of its own
        print(json.dumps(run(figures.option("stage", ""), Path(figures.option("place", "")))))
    else:
        figures.main(table)
