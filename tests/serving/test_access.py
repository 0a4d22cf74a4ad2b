"""Around every request: ids, the line in the log, headers, and an answer for a fault of ours."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from moon_ops.serving.app import create_app
from moon_ops.serving.opening import LOGGING
from moon_ops.settings import Settings


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a service without a release, with a route that fails."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("empty")))

    @app.get("/v1/broken")
    def broken() -> None:
        raise ZeroDivisionError("a fault of ours")

    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.mark.parametrize("given", ["order-17:search.2", "a" * 64])
def test_an_id_that_is_given_comes_back(client: TestClient, given: str) -> None:
    assert client.get("/health", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "a\tb", "ü".encode().decode("latin-1"), "x;status=200"])
def test_another_is_made_where_none_or_a_strange_one_is_given(client: TestClient, given: str) -> None:
    headers = {b"x-request-id": given.encode("latin-1")} if given else {}
    found = client.get("/health", headers=headers).headers.get_list("x-request-id")
    assert len(found) == 1
    assert re.fullmatch("[0-9a-f]{32}", found[0])


def test_a_request_has_its_line_and_a_probe_has_none(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="moon_ops.serving.access"):
        client.get("/health")
        client.post("/v1/search", data={"text": "secret words"}, headers={"x-request-id": "mine"})
    lines = [r.getMessage() for r in caplog.records if r.name == "moon_ops.serving.access"]
    assert [re.sub(r" ms=[\d.]+", "", line) for line in lines] == ["request_id=mine method=POST route=/v1/search status=503"]
    assert LOGGING["loggers"]["moon_ops"]["level"] == "INFO", "they are written"


def test_a_fault_of_ours_is_a_problem_with_an_id_and_is_in_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.get("/v1/broken", headers={"x-request-id": "broke"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "look in its log for broke" in answer.json()["action"]
    assert "a fault of ours" not in answer.text, "nothing of the inside is told"
    assert any("request broke: GET /v1/broken failed" in r.getMessage() and r.exc_info for r in caplog.records)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/search", 405),
        ("POST", "/v1/search", 503),
        ("GET", "/v1/images/0", 422),
        ("POST", "/v1/score", 422),
    ],
)
def test_what_is_refused_is_a_problem(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    body = answer.json()
    assert (answer.status_code, body["status"], answer.headers["content-type"]) == (status, status, "application/problem+json")
    assert body["detail"] == body["error"]
    assert {"type", "title", "action"} <= set(body)


def test_browsers_are_told_what_they_may_do(client: TestClient) -> None:
    for path in ("/", "/health", "/v1/search"):
        headers = client.get(path, headers={"origin": "https://elsewhere.example"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control-")], "no other site may read an answer"
    asked = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    assert client.options("/v1/search", headers=asked).status_code == 405
    assert "https:" not in client.get("/").headers["content-security-policy"]
