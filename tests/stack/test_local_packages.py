"""The topology of docker-compose.yml from local packages: all on Postgres, Redis, an S3 and MLflow's server, by deploy/local.env.

What it makes is what the embedded default makes: the same figures, the same answers, for a second machine with an empty home, too.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from local_services import MISSING, Services

from moon_ops import metric_names
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import datetime as dt
from moon_ops.cli.demo import Choices, run
from moon_ops.settings import Settings
from pathlib import Path
import sys
run(Settings.from_environment(), Choices(data=Path(sys.argv[1]), encoder=sys.argv[2]), now=dt.datetime.fromisoformat(sys.argv[3]))
"""
ASKED = ({"text": "mug"}, {"text": "red lamp", "k": "20"})

pytest.importorskip("moto", reason="moto is not installed: no S3")
pytest.importorskip("boto3", reason="boto3 is not installed")
pytest.importorskip("psycopg", reason="psycopg is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with Services() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        yield started


@pytest.fixture(scope="module")
def first(services: Services, released: Settings, now: dt.datetime) -> Settings:
    """The home in which the demo has run, as `released` was made, on the services and in a process of its own."""
    shop = released.home / "shop-tiny"
    command = [sys.executable, "-c", RUN, str(shop), "moon-nano", now.isoformat()]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Settings.from_environment()


@pytest.fixture(scope="module")
def second(first: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service of another machine, whose home is empty."""
    other = Settings.from_environment(tmp_path_factory.mktemp("second"))
    assert not list(other.home.iterdir())
    with TestClient(create_app(other)) as client:
        yield client


def answers(client: TestClient) -> list[Any]:
    found = [client.post("/v1/search", data=asked).json() for asked in ASKED]
    return [[(item["item_id"], item["score"], item["title"]) for item in answer["items"]] for answer in found]


def test_figures_are_those_of_the_embedded_default(first: Settings, released: Settings) -> None:
    from moon_ops.registry.registry import Registry, manifest_of

    ours, embedded = (manifest_of(Registry(settings), 1) for settings in (first, released))
    assert {metric_names.recall(metric_names.IMAGE_SEARCH), metric_names.ctr()} <= set(embedded["metrics"])
    figures = [{k: v for k, v in made["metrics"].items() if not k.startswith("serving/")} for made in (ours, embedded)]  # not its seconds
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_a_second_machine_gives_the_same_answers(second: TestClient, copied: Settings) -> None:
    with TestClient(create_app(copied)) as embedded:
        expected = answers(embedded)
    assert answers(second) == expected
    assert second.get("/ready").json()["release"] == 1


def score(client: TestClient) -> httpx.Response:
    ids = [item["item_id"] for item in client.post("/v1/search", data=ASKED[0]).json()["items"][:2]]
    return client.post("/v1/score", json={"user_id": 1, "item_ids": ids, "text": "red lamp"})


def until(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.5)


@contextlib.contextmanager
def away(services: Services, name: str) -> Iterator[None]:
    services.stop(name)
    try:
        yield
    finally:
        services.start(name)


def test_without_redis_searches_go_on_and_scores_come_back_with_it(second: TestClient, services: Services) -> None:
    before = score(second).json()["scores"]
    with away(services, "redis"):
        refused = score(second)
        assert refused.status_code == 503
        assert "the online store (MOON_REDIS = 127.0.0.1:" in refused.json()["error"]
        assert services.given["REDIS_PASSWORD"] not in refused.text
        assert len(answers(second)[0]) >= 5
    until(lambda: score(second).status_code == 200)
    assert score(second).json()["scores"] == before


def test_without_the_object_store_searches_go_on_with_titles_and_say_so(second: TestClient, services: Services) -> None:
    before = answers(second)
    with away(services, "s3"):
        assert answers(second) == before
        until(lambda: second.get("/ready").json()["status"] == "degraded")  # who asks for what has been withdrawn notices
        found = second.post("/v1/search", data=ASKED[0]).json()
        assert all(item["title"] for item in found["items"])
    until(lambda: second.get("/ready").json()["status"] == "ready")
    assert answers(second) == before


def test_without_mlflow_and_postgres_it_serves_and_follows_the_alias_again(second: TestClient, services: Services, first: Settings) -> None:
    from moon_ops.registry.registry import Registry

    before = answers(second)
    with away(services, "mlflow"), away(services, "postgres"):
        time.sleep(6)  # the follower asks every five seconds
        assert answers(second) == before
        assert score(second).status_code == 200
    until(lambda: second.get("/ready").json()["status"] == "ready")
    assert Registry(first).alias("champion") == 1
