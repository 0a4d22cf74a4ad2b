"""MLflow's signed webhooks: a right one wakes the service, a wrong one does not, and the signature is MLflow's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mlflow.webhooks import constants
from mlflow.webhooks.delivery import _generate_hmac_signature as mlflows

from moon_ops.serving import hooks
from moon_ops.serving.app import create_app
from moon_ops.settings import Settings

SECRET = "between MLflow and us"
BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "moon-release", "alias": "champion"}})


def headers(secret: str = SECRET, body: str = BODY, age: float = 0.0) -> dict[str, str]:
    stamp = str(int(time.time() - age))
    return {hooks.DELIVERY: "a-b-c", hooks.TIMESTAMP: stamp, hooks.SIGNATURE: mlflows(secret, "a-b-c", stamp, body)}


@pytest.fixture
def client(tmp_path: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=tmp_path, webhook_secret=SECRET))) as opened:
        yield opened


def test_the_names_are_mlflows() -> None:
    names = (constants.WEBHOOK_SIGNATURE_HEADER, constants.WEBHOOK_TIMESTAMP_HEADER, constants.WEBHOOK_DELIVERY_ID_HEADER)
    assert names == (hooks.SIGNATURE, hooks.TIMESTAMP, hooks.DELIVERY)
    assert constants.WEBHOOK_SIGNATURE_VERSION == "v1"


def test_a_right_one_wakes_the_service(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[bool] = []
    follower = client.app.state.follower  # type: ignore[attr-defined]
    monkeypatch.setattr(follower, "wake", lambda: woken.append(True))
    for age in (0, 290, -290):
        assert client.post(hooks.PATH, content=BODY, headers=headers(age=age)).status_code == 202
    assert len(woken) == 3


@pytest.mark.parametrize(
    "sent",  # as functions: a signature is of its time
    [
        dict,
        lambda: headers(secret="another"),
        lambda: headers(body=BODY + " "),
        lambda: headers(age=310),
        lambda: headers(age=-310),
        lambda: {**headers(), hooks.DELIVERY: "d"},
        lambda: {**headers(), hooks.SIGNATURE: headers()[hooks.SIGNATURE].removeprefix("v1,")},
        lambda: {**headers(), hooks.SIGNATURE: "v1,"},
        lambda: {**headers(), hooks.TIMESTAMP: "9" * 5000},
        lambda: {**headers(), hooks.TIMESTAMP: "-1"},
        lambda: {name: value for name, value in headers().items() if name != hooks.TIMESTAMP},
    ],
)
def test_a_wrong_one_does_not(client: TestClient, monkeypatch: pytest.MonkeyPatch, sent: Callable[[], dict[str, str]]) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(client.app.state.follower, "wake", lambda: woken.append(True))  # type: ignore[attr-defined]
    answer = client.post(hooks.PATH, content=BODY, headers=sent())
    assert woken == []
    assert answer.status_code == 401
    assert "moon-release" not in answer.text, "nothing of it is sent back"
    assert SECRET not in answer.text


def test_signs_beyond_ascii_are_no_signature(client: TestClient) -> None:
    strange = [(hooks.SIGNATURE.encode(), b"v1,\xe9"), (hooks.TIMESTAMP.encode(), str(int(time.time())).encode())]
    assert client.post(hooks.PATH, content=BODY, headers=strange).status_code == 401


def test_a_large_one_is_not_read(client: TestClient) -> None:
    large = "x" * (hooks.MOST_BYTES + 1)
    refused = client.post(hooks.PATH, content=large, headers=headers(body=large))
    assert (refused.status_code, refused.json()["error"]) == (413, "the request has more than 64 KiB")
    parts = (large[at : at + 10_000].encode() for at in range(0, len(large), 10_000))  # without a length
    assert client.post(hooks.PATH, content=parts, headers=headers(body=large)).status_code == 413


def test_without_a_secret_there_is_no_such_route(tmp_path: Any) -> None:
    with TestClient(create_app(Settings(home=tmp_path))) as client:
        assert client.post(hooks.PATH, content=BODY, headers=headers(secret="")).status_code == 404
    with TestClient(create_app(Settings(home=tmp_path, webhook_secret=SECRET), release=1)) as client:
        assert client.post(hooks.PATH, content=BODY, headers=headers()).status_code == 404, "one that follows no alias"
