"""What a large shop costs: ingest, derived tables, reads, a night and an increment.

Each runs in a process of its own, whose peak the kernel counts. The shop is made up (:mod:`made_up`) in a scratch directory beside
``MOON_HOME``, which is removed. ``--items 100000 --events 1000000``,
``--parts ingest,derive,read,night,increment``, ``--keep DIRECTORY`` for a shop and a lake that stay; ``--json`` prints one object last.
Compare sizes on one core (``taskset -c 0``). A night is one more day of events, with its derivation; an increment is 1,000 new items.
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
from pathlib import Path

import figures
import made_up

from moon_ops.ctr import impressions
from moon_ops.lake.ingest import ingest
from moon_ops.lake.lake import Lake
from moon_ops.lake.statistics import derive
from moon_ops.release.windows import windows
from moon_ops.settings import Settings

PARTS = ("ingest", "derive", "read", "night", "increment")
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
    "read": _read,
    "night": _night,
    "increment": _increment,
}


def run(stage: str, place: Path) -> dict[str, float]:
    """Run a stage in this process: wall and CPU seconds, its peak [MiB], MiB written, and what it counted."""
    before, began, cpu = size(place / "lake"), time.perf_counter(), time.process_time()
    counted = STAGES[stage](place)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # unlike ru_maxrss, without the parent's
    return {"seconds": seconds, "cpu": cpu, "peak_mib": int(peak) / 1024, "grown_mib": size(place / "lake") - before, **counted}


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
    costs = f"{one['seconds']:7.1f} s ({one['cpu']:.1f} CPU), peak {one['peak_mib']:,.0f} MiB, lake {one['grown_mib']:+,.0f} MiB"
    return f"{part:>9}: {costs}{speed}; {more}"


def table() -> dict[str, object]:
    """Measure, and print it."""
    items, events = (int(figures.option(name, default)) for name, default in (("items", "100000"), ("events", "1000000")))
    parts = [part for part in PARTS if part in figures.option("parts", ",".join(PARTS)).split(",")]
    found: dict[str, object] = {"items": items, "events": events}
    print(f"{items:,} items, {events:,} events")
    with _scratch() as place:
        for part in [*([] if (place / "new").exists() else ["make"]), *parts]:
            command = [sys.executable, __file__, "--stage", part, "--place", str(place), "--items", str(items), "--events", str(events)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{part}_{name}": value for name, value in one.items()}
            print(_line(part, one, {"ingest": items + events, "derive": events, "read": events}.get(part)), flush=True)
    return found


if __name__ == "__main__":
    if "--stage" in sys.argv:  # in a process of its own
        print(json.dumps(run(figures.option("stage", ""), Path(figures.option("place", "")))))
    else:
        figures.main(table)
