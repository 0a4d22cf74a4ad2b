"""The stack for real: started as `make stack` does, asked through Airflow's REST API and the proxy, hurt, and seen to go on.

``make stack-test`` runs it: in a project of its own, with its own ports and secrets, removed at the end. Where the official images cannot
be pulled, build those of ``tests/stack/images`` first (its README).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from moon_ops.cli import stack
from moon_ops.cli.containers import Compose, find, wait
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "moon-test"
PORTS = {"SEARCH": 28321, "AIRFLOW": 28080, "MLFLOW": 25000}
SERVICES = ("serving-1", "serving-2")
MINUTES = 60
pytestmark = [pytest.mark.stack, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    kept = os.environ.get("STACK_KEEP")  # a directory: its secrets are used again, and the stack is left running
    secrets = (Path(kept) if kept else tmp_path_factory.mktemp("stack")) / ".env"
    stack.write_environment(secrets)
    ports = {f"STACK_{name}_PORT": str(port) for name, port in PORTS.items()}
    known = stack.read_environment(secrets, {**os.environ, **ports, "COMPOSE_PROFILES": "core", "STACK_STATSD": "False"})
    compose = find(ROOT / "docker-compose.yml", PROJECT, known)
    try:
        stack.build(compose)
        stack.start(compose, ("core",))
        yield compose
    finally:
        if not kept:
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


def trigger(compose: Compose, token: str, dag: str, **params: object) -> str:
    asked(compose, "PATCH", f"/api/v2/dags/{dag}", {"is_paused": False}, token)
    return str(asked(compose, "POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": params}, token)["dag_run_id"])


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


def container(compose: Compose, service: str) -> str:
    """Its id."""
    return next(one.id for one in compose.containers() if one.service == service)


def inside(compose: Compose, service: str, *words: str) -> str:
    """What a command in a service's container says; empty if it fails."""
    return (compose.asked("exec", service if len(service) == 64 else container(compose, service), *words) or "").strip()


def said(compose: Compose, service: str, name: str) -> Any:
    """A field of what one of the services (its name, or its container's id) says of itself, whatever the status."""
    code = "import sys, http.client as h; c = h.HTTPConnection('127.0.0.1', 8321, timeout=20); c.request('GET', '/ready'); "
    told = inside(compose, service, "python", "-c", code + "print(c.getresponse().read().decode())")
    return json.loads(told or "{}").get(name)


def soon(seconds: float, so: Callable[[], Any]) -> Any:
    """What ``so`` says as soon as it says something; what it says last after ``seconds``."""
    until = time.monotonic() + seconds
    while not (said := so()) and time.monotonic() < until:
        time.sleep(2)
    return said


def score(compose: Compose, item_id: object) -> int:
    """The HTTP status of a score."""
    body = json.dumps({"user_id": 1, "item_ids": [item_id], "text": "lamp"}).encode()
    request = urllib.request.Request(f"{stack.address('SEARCH', compose.environment)}/v1/score", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_the_tiny_shop_runs_through_it_and_is_searched_by_both_services(running: Compose) -> None:
    stack.try_it(running)
    assert len(search(running)) == 5
    assert soon(60, lambda: [said(running, name, "release") for name in SERVICES] == [1, 1])


def test_recall_auc_and_results_are_those_of_the_embedded_default(running: Compose, tmp_path: Path) -> None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("MOON_", "AWS_"))}
    command = [sys.executable, "-m", "moon_ops.cli", *stack.DEMO[1:]]
    subprocess.run(command, env={**settings, "MOON_HOME": str(tmp_path)}, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    here = json.loads(subprocess.check_output([*command[:3], "status", "--json"], env={**settings, "MOON_HOME": str(tmp_path)}, cwd=ROOT))
    there = json.loads(inside(running, "airflow-worker", "moon", "status", "--json"))
    for name in ("image_search/recall@1", "image_search/recall@10", "text_search/recall@10", "ctr/auc"):
        assert there["metrics"][name] == pytest.approx(here["metrics"][name], abs=1e-3), name
    assert (there["items"], there["embedded"]) == (here["items"], here["embedded"])
    with TestClient(create_app(Settings(home=tmp_path))) as client:
        for text in ("lamp", "red chair", "cup"):
            expected = client.post("/v1/search", data={"text": text, "k": "5"}).json()["items"]
            found = search(running, text)
            assert [item["item_id"] for item in found] == [item["item_id"] for item in expected], text
            assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-4)


def test_scheduled_work_succeeds_and_survives_its_scheduler(running: Compose, token: str) -> None:
    refresh = trigger(running, token, "moon_nightly_refresh")
    assert ended(running, token, "moon_nightly_refresh", refresh, MINUTES) == "success"
    arrived = trigger(running, token, "moon_new_items")
    running.call("kill", "--signal", "KILL", container(running, "airflow-scheduler"))
    running.run("up", "--detach", "--no-build", "--no-deps", "airflow-scheduler")  # a killed one comes back by itself only after a fault
    assert ended(running, token, "moon_new_items", arrived, MINUTES) == "success"
    wait(running, stack.CORE, 600)
    assert len(search(running)) == 5


def test_one_service_of_two_may_be_gone(running: Compose) -> None:
    found = container(running, "serving-1")
    running.call("stop", found)
    try:
        assert all(len(search(running)) == 5 for _ in range(10))
    finally:
        running.call("start", found)
    wait(running, ("serving-1",), 300)


KILL = """
import os, pathlib, signal, sys
for told in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    if sys.argv[1] in told.read_text() and int(told.parent.name) != os.getpid():
        os.kill(int(told.parent.name), signal.SIGKILL)
        print('killed', told.parent.name)
"""  # Airflow's task names itself after its number, and so does whoever supervises it


def test_a_killed_training_goes_on_and_its_release_is_promoted(running: Compose, token: str) -> None:
    run = trigger(running, token, "moon_retrain", encoder="moon-nano")
    there = f"/api/v2/dags/moon_retrain/dagRuns/{run}/taskInstances/train"
    begun = "ls -d /var/lib/moon/checkpoints/moon-nano-*.partial"

    def training() -> bool:
        """It has prepared its pictures, and trains."""
        return asked(running, "GET", there, token=token)["state"] == "running" and bool(
            inside(running, "airflow-worker", "sh", "-c", begun)
        )

    assert soon(600, training)
    number = asked(running, "GET", there, token=token)["id"]
    assert "killed" in inside(running, "airflow-worker", "python", "-c", KILL, f"worker -- {number}")
    assert ended(running, token, "moon_retrain", run, MINUTES) == "success"
    assert asked(running, "GET", there, token=token)["try_number"] == 2
    assert soon(120, lambda: said(running, "serving-2", "release") == 2)
    assert json.loads(inside(running, "airflow-worker", "moon", "status", "--json"))["champion"]["release"] == 2


@pytest.mark.parametrize("store", ["redis", "mlflow", "s3"])
def test_a_store_that_is_away_for_a_minute_degrades_and_comes_back(running: Compose, store: str) -> None:
    """Frozen, not ended: whoever asks it waits, which is worse than a refusal; and the S3 of the stand-in images keeps nothing."""
    item, frozen = search(running)[0]["item_id"], container(running, store)
    asked = {name: container(running, name) for name in SERVICES}  # a look at the others would ask the store
    running.call("pause", frozen)
    began = time.monotonic()
    try:
        scored = [score(running, item) for _ in range(4)]
        found = search(running)
        degraded = soon(90, lambda: "degraded" in {said(running, one, "status") for one in asked.values()})
        time.sleep(max(0.0, 60 - (time.monotonic() - began)))
    finally:
        running.call("unpause", frozen)
    assert degraded
    assert len(found) == 5, "searches go on"
    assert set(scored) <= ({503, 504} if store == "redis" else {200})
    assert soon(180, lambda: {said(running, one, "status") for one in asked.values()} == {"ready"})
    assert soon(60, lambda: score(running, item) == 200)
    assert all(one["title"] for one in search(running))
