"""Seconds from a new item's acceptance until `/v1/search` and Feast know it: 200 items through the DAG, 200 pushed live.

Runs after `make demo`, in a copy of its home.

Items are the demo's own under new ids, each with a picture and a title of its own. ``live``: one POST /v1/items an item, one after
another; the clock of an item starts when it is answered. ``dag``: all of them lie in ``MOON_INBOX``, the asset is announced, and the clock
of all starts there; Airflow is started before, with its scheduler and SQLite, as `make airflow` does. The service is a process of its
own. ``--json`` prints one object as the last line; ``--only live`` leaves Airflow out.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import httpx
import numpy as np

from moon_ops.cli import standalone
from moon_ops.embeddings import features
from moon_ops.errors import ServiceError
from moon_ops.lake.tables import image_bytes, items_as_of
from moon_ops.publication import publication
from moon_ops.release.status import status
from moon_ops.settings import Settings

ITEMS, FIRST, TOKEN = 200, 2 * 10**9, "freshness"
WAIT_SECONDS = 300.0


def port() -> int:
    """A free one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process that is stopped at the end, with all that it started."""
    with log.open("w") as output:
        started = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            started.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def until(client: httpx.Client, path: str, log: Path) -> None:
    """Wait until a GET is answered with 200."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if client.get(path).status_code == 200:
                return
        time.sleep(0.5)
    raise ServiceError(f"{client.base_url}{path} is not ready after {WAIT_SECONDS:.0f} s: {log.read_text()[-300:]}", action="see the log")


def new_items(settings: Settings, first: int) -> list[dict[str, Any]]:
    """Rows of the ingest layout, with one picture's bytes each."""
    shown = [row for row in items_as_of(settings.lake, dt.datetime.now(dt.UTC)).to_pylist() if row["image_ids"]][:ITEMS]
    pictures = dict(image_bytes(settings.lake, [row["image_ids"][0] for row in shown]))
    return [
        {"item_id": first + n, "title": f"fresh {first + n} {row['title']}", "picture": pictures[row["image_ids"][0]]}
        for n, row in enumerate(shown)
    ]


class Watch:
    """Asks the service and Feast for items until both know them."""

    def __init__(self, client: httpx.Client, settings: Settings, encoder: int) -> None:
        self.client, self.encoder = client, encoder
        self.store = features.open_store(settings)

    def found(self, item: dict[str, Any]) -> bool:
        """Whether a search for its very picture and title leads to it, and the online store has its vector."""
        answer = self.client.post("/v1/search", files={"image": item["picture"]}, data={"text": item["title"], "k": "5"}).json()
        if item["item_id"] not in [hit["item_id"] for hit in answer["items"]]:
            return False
        known = self.store.get_online_features([f"item_embedding_v{self.encoder}:embedding"], [{"item_id": item["item_id"]}]).to_dict()
        return known["embedding"][0] is not None

    def wait(self, items: list[dict[str, Any]], since: dict[int, float], taken: list[float], *, patience: float) -> None:
        """Take the time of each item that is found; those that are not after ``patience`` seconds in all stay in ``since``."""
        end = time.monotonic() + patience
        for item in items:
            while item["item_id"] in since:
                if self.found(item):
                    taken.append(time.monotonic() - since.pop(item["item_id"]))
                elif time.monotonic() > end:
                    return
                else:
                    time.sleep(0.05)


def live(client: httpx.Client, watch: Watch, items: list[dict[str, Any]]) -> list[float]:
    """Seconds of each item that is pushed to the service."""
    taken: list[float] = []
    since: dict[int, float] = {}
    for item in items:
        row = {"item_id": item["item_id"], "title": item["title"], "images": [base64.b64encode(item["picture"]).decode()]}
        client.post("/v1/items", json={"items": [row]}, headers={"authorization": f"Bearer {TOKEN}"}).raise_for_status()
        since[item["item_id"]] = time.monotonic()
        watch.wait([i for i in items if i["item_id"] in since], since, taken, patience=0)
    watch.wait(items, since, taken, patience=WAIT_SECONDS)
    return taken


def through_dag(watch: Watch, items: list[dict[str, Any]], inbox: Path, airflow: httpx.Client) -> list[float]:
    """Seconds of each item that is put into the inbox, whose DAG is started then; an asset's event starts the other."""
    for item in items:
        (inbox / f"{item['item_id']}.img").write_bytes(item["picture"])
    rows = [{"item_id": i["item_id"], "title": i["title"], "images": [f"{i['item_id']}.img"]} for i in items]
    (inbox / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    airflow.post("/api/v2/dags/moon_ingest/dagRuns", json={"logical_date": None}).raise_for_status()
    since = dict.fromkeys((i["item_id"] for i in items), time.monotonic())
    taken: list[float] = []
    watch.wait(items, since, taken, patience=WAIT_SECONDS)
    return taken


@contextlib.contextmanager
def scheduler(settings: Settings, environment: dict[str, str]) -> Iterator[httpx.Client]:
    """Airflow with ``moon_ingest`` and ``moon_new_items`` switched on, and its last run over; a client of its API."""
    at, log = port(), settings.home / "airflow.log"
    (settings.home / "airflow").mkdir()
    variables = standalone.environment(settings, at) | environment
    with (
        process([sys.executable, "-m", "airflow", "standalone"], variables, log),
        httpx.Client(base_url=f"http://127.0.0.1:{at}", timeout=30, trust_env=False, follow_redirects=True) as client,
    ):
        until(client, "/api/v2/version", log)
        client.headers["authorization"] = f"Bearer {client.get('/auth/token').json()['access_token']}"
        for dag in ("moon_ingest", "moon_new_items"):
            until(client, f"/api/v2/dags/{dag}", log)
            client.patch(f"/api/v2/dags/{dag}", json={"is_paused": False}).raise_for_status()
        began = time.monotonic()  # a run that is due at once takes its course first
        while time.monotonic() < began + 2 * WAIT_SECONDS:
            runs = client.get("/api/v2/dags/~/dagRuns?limit=100").json()["dag_runs"]
            if all(run["state"] in ("success", "failed") for run in runs) and time.monotonic() > began + 20:
                break
            time.sleep(1)
        yield client


@contextlib.contextmanager
def service(settings: Settings) -> Iterator[tuple[Settings, dict[str, str], Watch]]:
    """A copy of the home, published up to date and served: its settings, its variables (set in this process, too), and a watch."""
    encoder = status(settings)["champion"]["encoder"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        shutil.copytree(settings.home, home, symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report", "airflow"))
        (Path(folder) / "inbox").mkdir()
        at, registry = port(), settings.tracking_uri.get_secret_value()
        mine = {
            "MOON_HOME": str(home),
            "MOON_INBOX": str(Path(folder) / "inbox"),
            "MOON_TRACKING_URI": "" if registry.startswith("sqlite:") else registry,  # the copy's own file
            "MOON_PORT": str(at),
            "MOON_ITEMS_TOKEN": TOKEN,
        }
        os.environ.update(mine)
        copy = Settings.from_environment()
        publication.publish(copy, encoder, now=dt.datetime.now(dt.UTC))  # to an online store that is new to it
        log = home / "serve.log"
        with (
            process([sys.executable, "-m", "moon_ops.cli", "serve"], {**os.environ}, log),
            httpx.Client(base_url=f"http://127.0.0.1:{at}", timeout=60, trust_env=False) as client,
        ):
            until(client, "/ready", log)
            yield copy, mine, Watch(client, copy, encoder)


def measure(settings: Settings, only: str) -> dict[str, float]:
    """p50 and p99 of both ways."""
    out: dict[str, float] = {}
    ways: dict[str, list[float]] = {}
    with service(settings) as (copy, mine, watch):
        if only in ("", "live"):
            ways["live"] = live(watch.client, watch, new_items(copy, FIRST))
        if only in ("", "dag"):
            with scheduler(copy, mine) as airflow:
                ways["dag"] = through_dag(watch, new_items(copy, FIRST + ITEMS), Path(mine["MOON_INBOX"]), airflow)
    for name, taken in ways.items():
        out[f"{name}_found"] = float(len(taken))
        out[f"{name}_p50_s"], out[f"{name}_p99_s"] = (float(v) for v in np.percentile(taken, [50, 99]))
    return out


def table() -> dict[str, float]:
    """Measure, and print it."""
    only = figures.option("only", "")
    found = measure(Settings.from_environment(), only)
    for name in ("live", "dag"):
        if f"{name}_found" in found:
            count, p50, p99 = (found[f"{name}_{what}"] for what in ("found", "p50_s", "p99_s"))
            print(f"{name}: {count:.0f} of {ITEMS} found, p50 {p50:.1f} s, p99 {p99:.1f} s")
    return found


if __name__ == "__main__":
    figures.main(table)
