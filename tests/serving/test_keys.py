"""Keys: kept as hashes, with scopes and a rate; and what a service answers to whom. Without a champion, 503 means: let through."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from moon_ops.cli.main import app as command
from moon_ops.errors import InputError, StageError
from moon_ops.serving import keys
from moon_ops.serving.app import create_app
from moon_ops.serving.keys import Keyring
from moon_ops.serving.permits import loopback, needed
from moon_ops.settings import Settings

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
EVERYWHERE = "0.0.0.0"
ASKED = {
    "search": ("POST", "/v1/search", {"data": {"text": "mug"}}),
    "score": ("POST", "/v1/score", {"json": {"user_id": 1, "item_ids": [1]}}),
    "write": ("POST", "/v1/events", {"json": {"events": []}}),
    "admin": ("POST", "/admin/drain", {}),
}
THROUGH = {"search": 503, "score": 503, "write": 422, "admin": 200}  # what the route itself answers


def ask(settings: Settings, scope: str, token: str = "") -> httpx.Response:
    method, path, request = ASKED[scope]
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(create_app(settings)).request(method, path, headers=headers, **request)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def make(settings: Settings, *scopes: str, rate: float = 100.0) -> str:
    return keys.create(keys.place_of(settings), "tests", scopes, per_second=rate, now=NOW)[1]


def test_a_key_is_kept_as_a_hash_and_nobody_else_may_read_the_file(home: Settings) -> None:
    token = make(home, "write", "search")
    place = home.home / "keys.json"
    assert token.split("_", 2)[2] not in place.read_text()
    assert place.stat().st_mode & 0o077 == 0
    (key,) = keys.read(place)
    assert (key.scopes, key.created) == (("search", "write"), "2026-06-01T00:00:00+00:00")
    ring = Keyring(place)
    assert ring.find(token) == key
    for wrong in (token[:-1], f"{token}x", token.replace("moon_", "sun_"), f"moon_{key.id}_", key.sha256, "", "é"):
        assert ring.find(wrong) is None


def test_a_key_opens_its_scopes_and_no_others(home: Settings) -> None:
    settings = home.replace(host=EVERYWHERE)
    token = make(settings, "search", "admin")
    assert {scope: ask(settings, scope, token).status_code for scope in ASKED} == {**THROUGH, "score": 403, "write": 403}
    answer = ask(settings, "score", token)
    assert "has no scope score" in answer.json()["error"]
    assert {scope: ask(settings, scope, "wrong").status_code for scope in ASKED} == dict.fromkeys(ASKED, 401)
    assert ask(settings, "search").headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_opens_nothing_in_a_service_that_runs(home: Settings) -> None:
    settings = home.replace(host=EVERYWHERE)
    token = make(settings, "search")
    client = TestClient(create_app(settings))
    request: dict[str, Any] = {"data": {"text": "mug"}, "headers": {"authorization": f"Bearer {token}"}}
    assert client.post("/v1/search", **request).status_code == 503
    (key,) = keys.read(settings.home / "keys.json")
    assert keys.revoke(settings.home / "keys.json", key.id, now=NOW).revoked == "2026-06-01T00:00:00+00:00"
    assert client.post("/v1/search", **request).status_code == 401
    assert ask(home, "search").status_code == 401, "also on this machine: somebody wants keys"


def test_without_keys_only_this_machine_is_answered_and_nothing_is_written(home: Settings) -> None:
    assert {scope: ask(home, scope).status_code for scope in ASKED} == {**THROUGH, "write": 403, "admin": 401}
    assert TestClient(create_app(home)).get("/admin/served").status_code == 200
    settings = home.replace(host=EVERYWHERE)
    answers = {scope: ask(settings, scope) for scope in ASKED}
    assert {scope: answer.status_code for scope, answer in answers.items()} == {**dict.fromkeys(ASKED, 401), "write": 403}
    assert "moon keys create NAME --scope search" in answers["search"].json()["action"]
    assert "MOON_OPEN=yes" in answers["search"].json()["action"]
    for path in ("/health", "/metrics", "/"):
        assert TestClient(create_app(settings)).get(path).status_code == 200
    assert ask(settings.replace(host="::1"), "search").status_code == 503


def test_open_on_purpose_is_searches_and_scores_alone(home: Settings) -> None:
    settings = home.replace(host=EVERYWHERE, open=True)
    assert {scope: ask(settings, scope).status_code for scope in ASKED} == {**THROUGH, "write": 403, "admin": 401}
    assert ask(settings, "search", "a dummy, as OpenAI's client sends one").status_code == 503
    make(settings, "write")
    assert {scope: ask(settings, scope).status_code for scope in ASKED} == {**THROUGH, "write": 401, "admin": 401}


def test_the_token_of_items_is_a_key_that_writes(home: Settings) -> None:
    settings = home.replace(host=EVERYWHERE, items_token="a-secret")
    assert {scope: ask(settings, scope, "a-secret").status_code for scope in ASKED} == {**dict.fromkeys(ASKED, 401), "write": 422}
    make(settings, "search")
    assert ask(settings, "write", "a-secret").status_code == 422


def test_a_key_asks_no_more_often_than_its_rate(home: Settings) -> None:
    settings = home.replace(host=EVERYWHERE)
    token = make(settings, "search", rate=0.5)
    client, headers = TestClient(create_app(settings)), {"authorization": f"Bearer {token}"}
    first, second = (client.post("/v1/search", data={"text": "mug"}, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code, second.headers["retry-after"]) == (503, 429, "2")


def test_a_bucket_fills_again_at_its_rate(home: Settings) -> None:
    make(home, "search", rate=10)
    ring = Keyring(home.home / "keys.json")
    (key,) = ring.all()
    assert sum(ring.wait(key, 0.0) == 0 for _ in range(50)) == 20, "two seconds' worth at once"
    assert ring.wait(key, 0.0) == pytest.approx(0.1)
    assert sum(ring.wait(key, 1.0) == 0 for _ in range(50)) == 10


def test_the_processes_of_a_service_have_one_rate_together(home: Settings, tmp_path: Path) -> None:
    """A client with one connection has all of it, and one with many has no more."""
    make(home, "search", rate=10)
    make(home, "search", rate=1)
    rings = [Keyring(home.home / "keys.json", together=tmp_path) for _ in range(2)]
    key, other = rings[0].all()
    assert sum(rings[turn % 2].wait(key, 0.0) == 0 for turn in range(50)) == 20
    assert rings[1].wait(key, 0.0) == pytest.approx(0.1)
    assert sum(rings[1].wait(key, 1.0) == 0 for _ in range(50)) == 10
    assert [ring.wait(other, 1.0) for ring in rings] == [0.0, 0.0], "the other one's is its own"
    assert rings[0].wait(other, 1.0) == pytest.approx(1.0)
    assert rings[0].wait(key, 0.5) == pytest.approx(0.1), "two clocks that were read in turn are no reason to take anything away"


def test_a_damaged_file_opens_nothing_and_says_so(home: Settings) -> None:
    token = make(home, "search")
    place = home.home / "keys.json"
    place.write_text(place.read_text()[:-20])
    with pytest.raises(StageError, match="is no file of keys"):
        keys.read(place)
    assert ask(home, "search", token).status_code == 401
    assert TestClient(create_app(home)).get("/admin/served").status_code == 401


@pytest.mark.parametrize(
    ("name", "scopes", "rate", "says"),
    [
        ("x", ("read",), 1.0, "scope 'read' is none of search, score, write, admin"),
        ("x", (), 1.0, "without a scope"),
        (" ", ("search",), 1.0, "name"),
        ("a\nb", ("search",), 1.0, "name"),
        ("x", ("search",), 0.0, "rate = 0"),
        ("x", ("search",), float("nan"), "rate = nan"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(home: Settings, name: str, scopes: tuple[str, ...], rate: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        keys.create(home.home / "keys.json", name, scopes, per_second=rate, now=NOW)
    assert not (home.home / "keys.json").exists()


def test_the_commands_make_list_and_revoke(home: Settings) -> None:
    runner, at = CliRunner(), ["--home", str(home.home)]
    assert runner.invoke(command, ["keys", "list", *at]).output.startswith("there are no keys: `moon keys create")
    assert runner.invoke(command, ["keys", "list", "--json", *at]).output == '{"keys": []}\n'
    made = runner.invoke(command, ["keys", "create", "shop", "--scope", "search", "--rate", "5", *at])
    assert "the first key: from now on each request to the service needs one" in made.stderr
    token = made.stdout.strip()
    listed = json.loads(runner.invoke(command, ["keys", "list", "--json", *at]).output)["keys"]
    assert [(key["name"], key["scopes"], key["per_second"], key["revoked"]) for key in listed] == [("shop", ["search"], 5.0, "")]
    assert "sha256" not in listed[0]
    assert Keyring(home.home / "keys.json").find(token) is not None
    assert "revoked 20" in runner.invoke(command, ["keys", "revoke", listed[0]["id"], *at]).output
    assert Keyring(home.home / "keys.json").find(token) is None
    assert runner.invoke(command, ["keys", "revoke", "nobody", *at]).exit_code == 1
    assert runner.invoke(command, ["keys", "create", "next", "--scope", "search", *at]).stderr == ""
    for one in ("create", "list", "revoke"):
        assert f"Example: moon keys {one}" in runner.invoke(command, ["keys", one, "--help"]).output


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/health", ""),
        ("POST", "/v1/hooks/mlflow", ""),
        ("POST", "/v1/search/", "search"),
        ("GET", "/v1/items", "search"),
        ("GET", "/v1/items/1/similar", "search"),
        ("POST", "/v1/recommend", "score"),
        ("POST", "/v1/items", "write"),
        ("DELETE", "/v1/items/SKU/1", "write"),
        ("PATCH", "/v1/items/1", "write"),
        ("POST", "/v1/events/", "write"),
        ("GET", "/admin/served", "admin"),
        ("GET", "/admin", "admin"),
    ],
)
def test_each_route_needs_its_scope(method: str, path: str, scope: str) -> None:
    assert needed(method, path) == scope


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("moon", False)])
def test_which_addresses_only_this_machine_reaches(host: str, alone: bool) -> None:
    assert loopback(host) is alone
