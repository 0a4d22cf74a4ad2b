"""Seconds from a new item's drop until a search finds it, through the DAGs of a real Airflow, and what of it is Airflow's.

Runs after `make demo`, in a copy of its home, beside `moon serve`; Airflow has its scheduler and SQLite, as `make airflow` does. Each of
``--runs`` 10 items lies in a directory of its own; ``moon_ingest`` is started at once over the REST API, and wakes ``moon_new_items``.
ours: from the drop until the search finds it. Beside it, from the drop until the last stage has ended: the same three stages as processes,
one after another, as cron would start them (peer), and as three calls in a process that has imported everything (limit).
``--json`` prints one object as the last line.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
import freshness
import httpx
import numpy as np

from moon_ops import tasks
from moon_ops.settings import Settings

STAGES = ("ingest_inbox", "embed_for_champion", "publish_for_champion")
ENDED = ("success", "failed")


def drop(inbox: Path, item: dict[str, Any]) -> float:
    """Put an item down, in one step; the time at which it lay there."""
    made = inbox.with_name("made") / str(item["item_id"])
    made.mkdir(parents=True)
    (made / "picture.img").write_bytes(item["picture"])
    row = {"item_id": item["item_id"], "title": item["title"], "images": ["picture.img"]}
    (made / "items.jsonl").write_text(json.dumps(row) + "\n")
    made.rename(inbox / made.name)
    return time.monotonic()


def through_dags(items: Iterator[dict[str, Any]], inbox: Path, watch: freshness.Watch, airflow: httpx.Client) -> tuple[float, float]:
    """Seconds until the item is found, and until the run that published it has ended."""
    item, taken = next(items), list[float]()
    began = drop(inbox, item)
    airflow.post("/api/v2/dags/moon_ingest/dagRuns", json={"logical_date": None}).raise_for_status()
    watch.wait([item], {item["item_id"]: began}, taken, patience=freshness.WAIT_SECONDS)
    while any(run["state"] not in ENDED for run in airflow.get("/api/v2/dags/moon_new_items/dagRuns?limit=100").json()["dag_runs"]):
        time.sleep(0.1)
    return (taken or [float("inf")])[0], time.monotonic() - began


def as_processes() -> None:
    """The stages as cron would start them."""
    for stage in STAGES:
        call = f"from moon_ops import tasks; tasks.{stage}({now()!r})"
        subprocess.run([sys.executable, "-c", call], check=True, capture_output=True)


def as_calls() -> None:
    """The stages in this process."""
    for stage in STAGES:
        getattr(tasks, stage)(now())


def now() -> str:
    """As a DAG's run gives it to a task."""
    return dt.datetime.now(dt.UTC).isoformat()


def timed(items: Iterator[dict[str, Any]], inbox: Path, stages: Callable[[], None]) -> float:
    """Seconds from an item's drop until the last stage has ended."""
    began = drop(inbox, next(items))
    stages()
    return time.monotonic() - began


def measure() -> dict[str, float]:
    """p50 and p99 of each, over as many items."""
    runs = int(figures.option("runs", "10"))
    with freshness.service(Settings.from_environment()) as (copy, mine, watch):
        items, inbox = iter(freshness.new_items(copy, freshness.FIRST)), Path(mine["MOON_INBOX"])
        with freshness.scheduler(copy, mine) as airflow:
            both = [through_dags(items, inbox, watch, airflow) for _ in range(runs)]
        timed(items, inbox, as_calls)  # imports everything
        calls = [timed(items, inbox, as_calls) for _ in range(runs)]
        processes = [timed(items, inbox, as_processes) for _ in range(runs)]
    taken = {"found": [found for found, _ in both], "dags": [ended for _, ended in both], "processes": processes, "calls": calls}
    out = {f"{name}_p{q}_s": float(np.percentile(of, q)) for (name, of), q in itertools.product(taken.items(), (50, 99))}
    return {"runs": float(runs), **out, "overhead_p50_s": out["dags_p50_s"] - out["calls_p50_s"]}


def table() -> dict[str, float]:
    """Measure, and print it."""
    found = measure()
    said = {
        "found": "found by a search after the drop, through the DAGs (ours; at most 60 s at p99)",
        "dags": "last DAG run ended",
        "processes": "the same stages as three processes (peer)",
        "calls": "the same stages as three calls (limit)",
    }
    for name, what in said.items():
        print(f"{what}: p50 {found[f'{name}_p50_s']:.1f} s, p99 {found[f'{name}_p99_s']:.1f} s")
    print(f"overhead of the DAGs over bare calls: {found['overhead_p50_s']:.1f} s; {found['runs']:.0f} items each")
    return found


if __name__ == "__main__":
    figures.main(table)
