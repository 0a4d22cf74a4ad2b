"""Requests drawn from the OpenAPI document, valid ones and others: whatever comes, nothing is answered with a 5xx.

The ordinary test draws a few of each route, always the same ones; the long one (`-m large`) draws many.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from moon_ops.cli.trial import running
from moon_ops.publication import publication
from moon_ops.serving import keys
from moon_ops.settings import Settings

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
FEW, MANY = 4, 200  # requests of a route


@pytest.fixture(scope="module")
def home(released: Settings, moved: Any, tmp_path_factory: pytest.TempPathFactory, now: dt.datetime) -> Settings:
    settings = moved(released, tmp_path_factory.mktemp("schema") / "home").replace(request_seconds=300)  # a slow machine is no fault
    publication.publish(settings, 1, now=now)
    return settings


@pytest.fixture(scope="module")
def client(home: Settings) -> Iterator[httpx.Client]:
    _, token = keys.create(keys.place_of(home), "tests", keys.SCOPES, per_second=1e6, now=NOW)
    with running(home) as opened:
        opened.headers["authorization"] = f"Bearer {token}"
        yield opened


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "other"])
@pytest.mark.parametrize("most", [FEW, pytest.param(MANY, marks=pytest.mark.large)])
def test_no_request_is_answered_with_a_5xx(client: httpx.Client, mode: GenerationMode, most: int) -> None:
    document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    found, sent = set[str](), list[str]()
    asked = [one.ok() for one in schema.get_all_operations()]
    assert len(asked) >= 20
    for operation in asked:

        @settings(max_examples=most, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            sent.append(case.path)
            answer = case.call(base_url=str(client.base_url), headers={"authorization": client.headers["authorization"]})
            if answer.status_code >= 500:
                found.add(f"{case.method} {answer.request.url} {str(answer.request.body)[:500]} → {answer.status_code} {answer.text[:300]}")

        with contextlib.suppress(Unsatisfiable):  # a route without parameters cannot be asked wrongly
            ask()
    assert len(sent) >= most * len(asked) // 2
    assert not found, "\n".join(sorted(found))
    assert client.get("/health").status_code == 200
