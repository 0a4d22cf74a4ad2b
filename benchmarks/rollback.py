"""Seconds from a moved alias until the old release answers, ten rollbacks and ten promotions, while searches go on (run `make demo` and
`make demo SEED=1` first: two releases).

ours: ``moon rollback`` in a process of its own beside ``moon serve`` in another, on a copy of ``MOON_HOME``; limit: the service asks the
registry every five seconds, so on average half of that passes before it can know. Failed requests are counted over the whole run.
``--json`` prints one object as the last line.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import figures
import httpx
import numpy as np

from moon_ops.errors import StageError
from moon_ops.registry.registry import CHAMPION, RELEASE, Registry
from moon_ops.settings import Settings

ROUNDS, WAIT_SECONDS = 10, 120.0
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def copied(settings: Settings, home: Path) -> Settings:
    """The home at another place, to change at will; MLflow's absolute paths are moved along."""
    shutil.copytree(settings.home, home, symlinks=True, ignore=shutil.ignore_patterns("shop-*", "checkpoints", "report", "airflow"))
    with sqlite3.connect(home / "mlflow.db") as database:
        for table, column in PLACES:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(settings.home), str(home)))
    return Settings(home=home)


def moon(settings: Settings, *words: str) -> float:
    """Run a command; its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "moon_ops.cli", *words, "--home", str(settings.home)], check=True, capture_output=True)
    return time.perf_counter() - began


@contextmanager
def served(settings: Settings) -> Iterator[httpx.Client]:
    """A client of ``moon serve`` in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "moon_ops.cli", "serve", "--home", str(settings.home)]
    service = subprocess.Popen(command, env={**os.environ, "MOON_PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            began = time.perf_counter()
            while time.perf_counter() - began < WAIT_SECONDS:
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.2)
            yield client
    finally:
        service.send_signal(signal.SIGINT)
        service.wait(30)


class Searches:
    """Searches in a thread of their own: which release answered when, and how many failed."""

    def __init__(self, address: str) -> None:
        self.address, self.release, self.asked, self.failed = address, 0, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=30, trust_env=False) as client:
            while not self._stop.is_set():
                self.asked += 1
                try:
                    answer = client.post("/v1/search", data={"text": "red lamp"})
                    self.release = int(answer.raise_for_status().json()["release"])
                except (httpx.HTTPError, ValueError, KeyError):
                    self.failed += 1
                time.sleep(0.02)

    def stop(self) -> None:
        """No more searches."""
        self._stop.set()
        self._thread.join(60)


def switched(settings: Settings, registry: Registry, searches: Searches, to: int, *words: str) -> tuple[float, float]:
    """Seconds from the moved alias until release ``to`` answers, and of the command."""
    moved: list[float] = []

    def watch() -> None:
        while not moved:
            if registry.alias(CHAMPION) == to:
                moved.append(time.perf_counter())
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    command = moon(settings, *words)
    watching.join(WAIT_SECONDS)
    while searches.release != to:
        if time.perf_counter() - moved[0] > WAIT_SECONDS:
            raise StageError(f"release {to} did not answer within {WAIT_SECONDS:g} seconds", action="look at the service's log")
        time.sleep(0.005)
    return time.perf_counter() - moved[0], command


def table() -> dict[str, float]:
    """Measure, and print it."""
    settings = Settings.from_environment()
    newest = Registry(settings).newest(RELEASE) if (settings.home / "mlflow.db").is_file() else None
    if newest is None or newest < 2:
        raise StageError(f"MOON_HOME = {settings.home} holds no two releases", action="run `make demo` and `make demo SEED=1` first")
    with tempfile.TemporaryDirectory() as scratch:
        home = copied(settings, Path(scratch) / "home")
        registry, back, on = Registry(home), list[tuple[float, float]](), list[tuple[float, float]]()
        if registry.alias(CHAMPION) != newest:
            moon(home, "promote", str(newest), "--force", "--reason", "to measure the way back")
        with served(home) as client:
            searches = Searches(str(client.base_url))
            for _ in range(ROUNDS):
                while searches.release != newest:
                    time.sleep(0.01)
                back.append(switched(home, registry, searches, newest - 1, "rollback", "--to", str(newest - 1), "--reason", "measured"))
                on.append(switched(home, registry, searches, newest, "promote", str(newest), "--force", "--reason", "measured"))
            searches.stop()
    found = {"rollback_p95_s": float(np.percentile([s for s, _ in back], 95)), "rollback_p50_s": float(np.median([s for s, _ in back]))}
    found |= {"promote_p95_s": float(np.percentile([s for s, _ in on], 95)), "command_p50_s": float(np.median([c for _, c in back]))}
    found |= {"searches": float(searches.asked), "failed": float(searches.failed)}
    print(
        f"the old release answers {found['rollback_p50_s']:.1f} s after the alias moved, p95 {found['rollback_p95_s']:.1f} s (goal: 60 s)"
    )
    print(f"`moon rollback` took {found['command_p50_s']:.1f} s; {searches.failed} of {searches.asked:,} searches failed meanwhile")
    return found


if __name__ == "__main__":
    figures.main(table)
