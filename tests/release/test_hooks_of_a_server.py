"""A real MLflow server sends its webhook when an alias moves, and the service follows at once instead of at its next look."""

from __future__ import annotations

import time

import pytest
from by_hand import Make

from moon_ops.cli.trial import running
from moon_ops.registry.registry import CHAMPION, RELEASE, Registry
from moon_ops.serving import hooks
from moon_ops.serving.follower import Follower
from moon_ops.settings import Settings

SECRET = "between MLflow and us"
WITHIN_SECONDS = 120.0  # on a busy machine; the service itself would look after 600


@pytest.mark.filterwarnings("ignore:.*experimental")
def test_an_alias_moved_in_mlflow_is_served_at_once(through_server: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service asks every ten minutes here, so nothing but the webhook can have told it."""
    make_release()
    assert Follower.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(Follower.__init__.__kwdefaults__, "every_seconds", 600.0)
    registry = Registry(through_server)
    with running(through_server.replace(webhook_secret=SECRET)) as service:
        events = ["model_version_alias.created", "model_version_alias.deleted"]
        made = registry.client.create_webhook("moon", f"{service.base_url}{hooks.PATH}", events, secret=SECRET)
        assert registry.client.test_webhook(made.webhook_id).response_status == 202
        seconds = []
        for release in (2, 1):
            began = time.monotonic()
            registry.client.set_registered_model_alias(RELEASE, CHAMPION, str(release))  # what the UI asks for
            while service.get("/ready").json()["release"] != release and time.monotonic() - began < WITHIN_SECONDS:
                time.sleep(0.02)
            assert service.get("/ready").json()["release"] == release
            seconds.append(time.monotonic() - began)
        while (ready := service.get("/ready").json())["status"] != "ready" and time.monotonic() - began < WITHIN_SECONDS:
            time.sleep(0.1)  # the server may have been slow to answer a moment ago
        assert ready["status"] == "ready", ready
        print(f"served {seconds[0]:.2f} and {seconds[1]:.2f} s after the alias moved")
        registry.client.delete_registered_model_alias(RELEASE, CHAMPION)
        began, missing = time.monotonic(), "there is no champion release"
        while missing not in (service.get("/ready").json()["refused"] or "") and time.monotonic() - began < WITHIN_SECONDS:
            time.sleep(0.02)
        assert missing in service.get("/ready").json()["refused"]
        registry.client.update_webhook(made.webhook_id, secret="another one")
        assert registry.client.test_webhook(made.webhook_id).response_status == 401
