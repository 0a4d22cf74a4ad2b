"""The stack for real: started as `make stack` does, asked through Airflow's REST API and the proxy, hurt, and seen to go on.

``make stack-test`` runs it: in a project of its own, with its own ports and secrets, removed at the end. Where the official images cannot
be pulled, build those of ``tests/stack/images`` first (its README).
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moon_ops.cli import stack
from moon_ops.cli.containers import Compose, find, wait

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "moon-test"
PORTS = {"SEARCH": 28321, "AIRFLOW": 28080, "MLFLOW": 25000}
MINUTES = 60
pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    secrets = tmp_path_factory.mktemp("stack") / ".env"
    stack.write_environment(secrets)
    ports = {f"STACK_{name}_PORT": str(port) for name, port in PORTS.items()}
    known = stack.read_environment(secrets, {**os.environ, **ports, "COMPOSE_PROFILES": "core", "STACK_STATSD": "False"})
    compose = find(ROOT / "docker-compose.yml", PROJECT, known)
    try:
        stack.build(compose)
        stack.start(compose, ("core",))
        yield compose
    finally:
        if "STACK_KEEP" not in os.environ:
            compose.run("down", "--volumes", check=False)


def asked(compose: Compose, method: str, path: str, content: object = None, token: str = "") -> Any:
    """An answer of Airflow's REST API."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{stack.address('AIRFLOW', compose.environment)}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def token(running: Compose) -> str:
    known = {"username": "admin", "password": running.environment["AIRFLOW_ADMIN_PASSWORD"]}
    return str(asked(running, "POST", "/auth/token", known)["access_token"])


def trigger(compose: Compose, token: str, dag: str) -> str:
    asked(compose, "PATCH", f"/api/v2/dags/{dag}", {"is_paused": False}, token)
    return str(asked(compose, "POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None}, token)["dag_run_id"])


def state(compose: Compose, token: str, dag: str, run: str) -> str:
    return str(asked(compose, "GET", f"/api/v2/dags/{dag}/dagRuns/{run}", token=token)["state"])


def ended(compose: Compose, token: str, dag: str, run: str, minutes: float) -> str:
    until = time.monotonic() + minutes * 60
    while (now := state(compose, token, dag, run)) not in ("success", "failed") and time.monotonic() < until:
        time.sleep(3)
    return now


def search(compose: Compose, text: str = "lamp") -> list[Any]:
    found = stack.answers(f"{stack.address('SEARCH', compose.environment)}/v1/search", {"text": text, "k": "5"})
    return json.loads(found)["items"] if found else []


def test_the_tiny_shop_runs_through_it_and_is_searched_by_both_services(running: Compose) -> None:
    stack.try_it(running)
    assert len(search(running)) == 5
    for name in ("serving-1", "serving-2"):
        found = next(one for one in running.containers() if one.service == name)
        code = "import json, urllib.request as r; print(json.load(r.urlopen('http://127.0.0.1:8321/ready'))['release'])"
        deadline = time.monotonic() + 60
        while (release := running.asked("exec", found.id, "python", "-c", code)) is None and time.monotonic() < deadline:
            time.sleep(2)
        assert (release or "").strip() == "1", name


def test_scheduled_work_succeeds_and_survives_its_scheduler(running: Compose, token: str) -> None:
    refresh = trigger(running, token, "moon_nightly_refresh")
    assert ended(running, token, "moon_nightly_refresh", refresh, MINUTES) == "success"
    arrived = trigger(running, token, "moon_new_items")
    scheduler = next(one for one in running.containers() if one.service == "airflow-scheduler")
    running.call("kill", "--signal", "KILL", scheduler.id)
    running.run("up", "--detach", "--no-build", "--no-deps", "airflow-scheduler")  # a killed one comes back by itself only after a fault
    assert ended(running, token, "moon_new_items", arrived, MINUTES) == "success"
    wait(running, stack.CORE, 600)
    assert len(search(running)) == 5


def test_one_service_of_two_may_be_gone(running: Compose) -> None:
    found = next(one for one in running.containers() if one.service == "serving-1")
    running.call("stop", found.id)
    try:
        assert all(len(search(running)) == 5 for _ in range(10))
    finally:
        running.call("start", found.id)
    wait(running, ("serving-1",), 300)
