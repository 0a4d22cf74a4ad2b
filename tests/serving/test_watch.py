"""After the switch: failures, latency, recall of known answers and drift of scores are watched, and a new release may be left for them."""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import prometheus_client
import pytest
from fastapi.testclient import TestClient
from prometheus_client.values import MutexValue

from moon_ops.embeddings import index
from moon_ops.errors import ServiceError
from moon_ops.publication import places
from moon_ops.registry.moves import moves
from moon_ops.registry.registry import CHAMPION, Registry
from moon_ops.release import promotion
from moon_ops.serving import probe, watch
from moon_ops.serving.app import create_app
from moon_ops.serving.follower import Follower
from moon_ops.serving.rolling import BASELINE_LEAST, BASELINE_SECONDS, Drift, Requests
from moon_ops.serving.stores import ONLINE
from moon_ops.serving.watch import Watch
from moon_ops.settings import Settings

WISH = promotion.Wish("on-call@laptop", "2026-06-02T03:00:00+00:00", "tried")
MINUTE = dt.timedelta(minutes=1)
Make = Callable[..., int]


class Clock:
    """Seconds that pass when the test says so; and the time of day with them."""

    def __init__(self) -> None:
        self.seconds, self.began = 1000.0, dt.datetime.now(dt.UTC)

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> dt.datetime:
        return self.began + dt.timedelta(seconds=self.seconds - 1000.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def following(settings: Settings, clock: Clock) -> tuple[Follower, Watch]:
    follower = Follower(settings)
    follower.follow()
    return follower, Watch(settings, follower, clock=clock)


def fail(watched: Watch, release: int, share: float, requests: int = 100) -> None:
    for number in range(requests):
        watched.observe(release, 0.01, failed=number < share * requests)


def spoil(settings: Settings) -> None:
    """Publish an index in which every item has another one's vector."""
    ids, vectors = places.tables(settings, 1).items.all()
    index.build(places.index_place(settings, 1), ids, np.roll(vectors, len(ids) // 2, axis=0), places.tables(settings, 1).items.contract_id)


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_requests_of_the_last_five_minutes_count() -> None:
    seen = Requests()
    for number in range(100):
        seen.add(30.0, 0.010 if number < 90 else 0.5, failed=number < 25)
    lately = seen.lately(60 * 4 + 59)
    assert (lately.requests, lately.failed) == (100, 0.25)
    assert lately.p50 == pytest.approx(0.010, rel=0.2)
    assert lately.p95 == pytest.approx(0.5, rel=0.2)
    assert seen.lately(60 * 5).requests == 0
    seen.add(60 * 5, 0.1, failed=False)
    assert seen.lately(60 * 5).requests == 1, "the minute's place is taken by the new one"


def test_scores_are_compared_with_those_of_the_first_hour() -> None:
    """Two normal distributions that lie d standard deviations apart have a stability index of about d squared."""
    random, drift = np.random.default_rng(0), Drift(0.0)
    for second in range(BASELINE_LEAST):
        drift.add(float(second), random.normal(0.5, 0.1, 4).tolist())
    assert drift.value() is None
    drift.add(BASELINE_SECONDS, [0.5])
    drift.add(BASELINE_SECONDS + 1, random.normal(0.5, 0.1, BASELINE_LEAST - 1).tolist())
    assert drift.value() is None, "too few since"
    drift.add(BASELINE_SECONDS + 2, random.normal(0.5, 0.1, 1500).tolist())
    assert drift.value() == pytest.approx(0.0, abs=0.03)
    drift.add(BASELINE_SECONDS + 3, random.normal(0.55, 0.1, 2000).tolist())
    assert drift.value() == pytest.approx(0.25, abs=0.08)


def test_known_answers_are_found_by_what_is_served(copied: Settings, clock: Clock) -> None:
    follower, _ = following(copied, clock)
    known = probe.answers(copied.lake)
    assert len(known) == probe.MOST == len({answer.query_id for answer in known})
    bought = copied.lake.read(
        "events", ["event_timestamp", "query_id", "item_id"], "event = 'purchase' AND query_id IS NOT NULL"
    ).to_pylist()
    assert max(bought, key=lambda row: row["event_timestamp"])["query_id"] in {answer.query_id for answer in known}
    assert {(a.query_id, a.item_id) for a in known} <= {(row["query_id"], row["item_id"]) for row in bought}
    found = probe.measure(follower.champion(), copied.lake, known, clock.now(), lambda: False)
    assert found is not None
    by_hand = [by_hand_found(copied, follower, answer) for answer in known]
    assert found.asked == sum(hit is not None for hit in by_hand)
    assert found.recall == pytest.approx(np.mean([hit for hit in by_hand if hit is not None]))
    assert probe.measure(follower.champion(), copied.lake, known[: probe.LEAST - 1], clock.now(), lambda: False) is None


def by_hand_found(settings: Settings, follower: Follower, answer: probe.Answer) -> bool | None:
    """Whether an item of the product bought is among the ten nearest; None for a product that is not sold any more."""
    from moon_ops.lake.tables import image_bytes, items_as_of

    items = items_as_of(settings.lake, dt.datetime.now(dt.UTC), ["item_id", "spu_id"]).to_pylist()
    product = {row["item_id"]: row["spu_id"] for row in items}
    if answer.item_id not in product:
        return None
    query = settings.lake.read("queries", where=f"query_id = {answer.query_id}").to_pylist()[0]
    picture = next(image_bytes(settings.lake, [query["image_id"]]))[1] if query["image_id"] else None
    champion = follower.champion()
    hits = champion.search(champion.embed(query["text"] or "", picture), 10)
    return product[answer.item_id] in {product.get(hit.item_id) for hit in hits}


def test_failures_past_the_limit_are_an_alert_that_is_logged_once_and_ends(
    copied: Settings, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    _, watched = following(copied, clock)
    fail(watched, 1, 1.0, watch.LEAST_REQUESTS - 1)
    watched.check(clock.now())
    assert watched.alerts() == [], "too few to say anything"
    fail(watched, 1, 0.2)
    for _ in range(3):
        watched.check(clock.now())
    (alert,) = watched.alerts()
    assert (alert.kind, alert.release) == ("errors", 1)
    assert alert.text.endswith("of 149 requests failed in five minutes, above 5.0%")
    assert said(caplog, "alert errors: release 1: ") == 1
    clock.seconds += 600
    watched.check(clock.now())
    assert watched.alerts() == []
    assert said(caplog, "alert errors is over: release 1") == 1


def test_a_slow_release_is_an_alert(copied: Settings, clock: Clock) -> None:
    _, watched = following(copied.replace(alert_slow_ms=300), clock)
    for number in range(100):
        watched.observe(1, 0.4 if number < 10 else 0.01, failed=False)
    watched.check(clock.now())
    assert [alert.kind for alert in watched.alerts()] == ["latency"]
    assert "above 300" in watched.alerts()[0].text


def test_an_index_that_finds_less_is_noticed_after_its_publication(copied: Settings, clock: Clock) -> None:
    follower, watched = following(copied, clock)
    watched.check(clock.now())
    before = watched.shown()
    assert before["recall_at_10"] == before["recall_expected"] > 0.3
    spoil(copied)
    follower.refresh()
    watched.check(clock.now())
    assert watched.alerts() == [], "not more than one probe a minute"
    clock.seconds += watch.SOON_SECONDS
    watched.check(clock.now())
    (alert,) = watched.alerts()
    assert alert.kind == "recall"
    assert f"more than 0.2 below {before['recall_at_10']:.2f}" in alert.text
    assert watched.shown()["recall_expected"] == before["recall_at_10"]


def promoted(settings: Settings, make_release: Make, follower: Follower) -> None:
    promotion.promote(settings, make_release(), WISH)
    follower.follow()
    assert follower.champion().version == 2


def test_a_new_release_that_fails_is_left_once_where_the_setting_says_so(
    copied: Settings, registry: Registry, make_release: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    follower, watched = following(copied.replace(auto_rollback=True), clock)
    promoted(copied, make_release, follower)
    fail(watched, 2, 0.5)
    watched.check(clock.now())
    assert registry.alias(CHAMPION) == 2, "it may be a moment's"
    clock.seconds += watch.STANDING_SECONDS
    watched.check(clock.now())
    last = moves(registry)[-1]
    assert (last.kind, last.before, last.release, registry.alias(CHAMPION)) == ("rollback", 2, 1, 1)
    assert last.by.startswith("moon serve on ")
    assert last.why == "automatic: 50.0% of 100 requests failed in five minutes, above 5.0%"
    assert said(caplog, "rolled back from release 2 to 1: 50.0% of 100 requests failed") == 1
    watched.check(clock.now())
    follower.follow()
    watched.check(clock.now())
    assert (follower.champion().version, watched.alerts(), len(moves(registry))) == (1, [], 3)


def test_a_new_release_that_finds_less_is_left(copied: Settings, registry: Registry, make_release: Make, clock: Clock) -> None:
    """What is expected is the recall of the release before, on the same answers."""
    follower, watched = following(copied.replace(auto_rollback=True), clock)
    watched.check(clock.now())
    promoted(copied, make_release, follower)
    spoil(copied)
    follower.refresh()
    for _ in range(2):
        watched.check(clock.now())
        clock.seconds += watch.STANDING_SECONDS
    watched.check(clock.now())
    assert moves(registry)[-1].kind == "rollback"
    assert "recall@10 of" in moves(registry)[-1].why


@pytest.mark.parametrize("case", ["off", "old", "store away", "moved on", "rolled back before"])
def test_when_a_release_is_not_left(
    copied: Settings, registry: Registry, make_release: Make, clock: Clock, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    follower, watched = following(copied.replace(auto_rollback=case != "off"), clock)
    promoted(copied, make_release, follower)
    if case == "old":  # also after a restart: what counts is when the home began to serve it
        place = copied.home / "served.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "since": (clock.now() - 31 * MINUTE).isoformat()}))
    if case == "rolled back before":
        promotion.rollback(copied, WISH)
        follower.follow()
    if case == "moved on":
        promotion.rollback(copied, WISH)  # the follower has not noticed yet
    if case == "store away":
        (copied.home / "feature_store" / "online.db").write_bytes(b"no database" * 1000)
        with pytest.raises(ServiceError), watched.stores.asked(ONLINE):
            follower.champion().ask_store()
    release = follower.champion().version
    fail(watched, release, 0.5)
    before = len(moves(registry))
    for _ in range(3):
        watched.check(clock.now())
        clock.seconds += watch.STANDING_SECONDS
    assert [alert.kind for alert in watched.alerts()] == ["errors"]
    assert len(moves(registry)) == before
    if case in ("moved on", "rolled back before"):
        assert said(caplog, f"release {release} is not left, although 50.0%") == 1


def counted(metrics: str) -> dict[str, float]:
    """Requests by their labels."""
    found = (
        line.removeprefix("moon_requests_total").rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("moon_requests_total")
    )
    return {labels: float(count) for labels, count in found}


def test_figures_are_told_by_route_and_release(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_client.values, "ValueClass", MutexValue)  # MLflow's server makes its process share counters by name
    with TestClient(create_app(copied), raise_server_exceptions=False) as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.1)
        before = counted(client.get("/metrics").text)
        codes = [client.post("/v1/search", data={"text": "red lamp"}).status_code for _ in range(3)]
        codes += [client.post("/v1/search", data={"k": "0"}).status_code, client.get("/nowhere").status_code]
        first = client.get("/v1/models").status_code, client.post("/v1/relevance", json={"text": "lamp", "item_ids": [1]}).status_code
        app: Any = client.app
        app.state.watch.check(dt.datetime.now(dt.UTC))
        shown, metrics = client.get("/ready").json()["watch"], client.get("/metrics").text
    assert first == (200, 200)
    assert (shown["release"], shown["requests_5m"], shown["failed_5m"]) == (1, 5, 0.0)
    assert 0 < shown["p50_ms"] <= shown["p95_ms"] < 5000
    assert shown["drift"] == {"search": None, "score": None}
    after = counted(metrics)
    assert codes == [200, 200, 200, 422, 404]
    asked = {labels: count - before.get(labels, 0.0) for labels, count in after.items() if '"/ready"' not in labels}
    assert {labels: count for labels, count in asked.items() if count and '"/metrics"' not in labels} == {
        '{code="200",release="1",route="/v1/search"}': 3.0,
        '{code="422",release="1",route="/v1/search"}': 1.0,
        '{code="404",release="1",route="other"}': 1.0,
        '{code="200",release="1",route="/v1/models"}': 1.0,
        '{code="200",release="1",route="/v1/relevance"}': 1.0,
    }, (before, after)
    assert 'moon_request_seconds_count{release="1",route="/v1/search"} 4.0' in metrics
    assert 'moon_alert{kind="errors"} 0.0' in metrics
    assert f"moon_probe_recall_at_10 {shown['recall_at_10']}" in metrics
    assert "moon_release_since_seconds" in metrics
    assert "process_start_time_seconds" in metrics
