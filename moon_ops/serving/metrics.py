"""What a service tells Prometheus: what it serves and is asked to, how requests go by route and release, alerts, and the last canary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moon_ops.serving.batcher import Batcher
from moon_ops.serving.champion import Champion
from moon_ops.serving.follower import Follower
from moon_ops.serving.gate import Limits
from moon_ops.serving.watch import KINDS, Watch

NONE = -1.0  # no release
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
QUERIES = (  # the routes on which people wait for a release: batches for machines may take long
    *("/v1/search", "/v1/embed", "/v1/score", "/v1/relevance", "/v1/recommend"),
    "/v1/items/{item_id:path}/similar",
)
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of a batch
ELSE = "other"  # a path that is no route


class Traffic:
    """Requests and their latency, counted by route and release."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("route", "release")
        self.requests = Counter("moon_requests", "Requests by route, release and status.", (*labels, "code"), registry=registry)
        self.seconds = Histogram(
            "moon_request_seconds", "Seconds of a request, once it has been read.", labels, registry=registry, buckets=BUCKETS
        )

    def add(self, route: str, release: str, status: int, seconds: float) -> None:
        """A request that has been answered."""
        self.requests.labels(route, release, str(status)).inc()
        self.seconds.labels(route, release).observe(seconds)


class Batches:
    """Queries that went through the encoder together, and how long each had waited for it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        told = "Queries in one forward of the encoder."
        self.size = Histogram("moon_batch_size", told, registry=registry, buckets=SIZES)
        self.waited = Histogram("moon_queue_seconds", "Seconds that a query waited for the encoder.", registry=registry, buckets=BUCKETS)

    def add(self, size: int, waits: Sequence[float]) -> None:
        """A forward that has ended."""
        self.size.observe(size)
        for waited in waits:
            self.waited.observe(waited)


class Asked:
    """Questions to the services that hold other shards of the index, by their address."""

    def __init__(self, registry: CollectorRegistry) -> None:
        told = "Seconds of a question for shards that another service holds."
        self.seconds = Histogram("moon_shard_seconds", told, ["peer"], registry=registry, buckets=BUCKETS)
        self.failed = Counter("moon_shard_failures", "Such questions that were not answered.", ["peer"], registry=registry)

    def add(self, address: str, seconds: float, answered: bool) -> None:
        """A question that has ended."""
        self.seconds.labels(address).observe(seconds)
        self.failed.labels(address).inc(not answered)


class Queue(Collector):
    """What waits and what is worked on, at each scrape; and what was refused."""

    def __init__(self, limits: Limits, batcher: Batcher) -> None:
        self.limits, self.batcher = limits, batcher

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The figures."""
        yield _gauge("moon_queue_depth", "Queries that wait for the encoder.", self.batcher.depth)
        working = GaugeMetricFamily("moon_requests_working", "Requests that are read and not answered yet.", labels=["kind"])
        for kind, load in (("query", self.limits.queries), ("write", self.limits.writes)):
            working.add_metric([kind], load.working)
        refused = CounterMetricFamily("moon_requests_refused", "Requests that were refused or given up, by reason.", labels=["reason"])
        for reason, count in self.limits.refused.items():
            refused.add_metric([reason], count)
        yield from (working, refused)


class Measured:
    """ASGI middleware that counts and times each request, from when it has been read: a slow client is no slow service."""

    def __init__(self, app: ASGIApp, follower: Follower, watch: Watch, traffic: Traffic) -> None:
        self.app, self.follower, self.watch, self.traffic = app, follower, watch, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, and take its time."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, current = time.perf_counter(), 500, self.follower.current

        async def read() -> Message:
            nonlocal began
            message = await receive()
            began = time.perf_counter() if message["type"] == "http.request" else began
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            status = message["status"] if message["type"] == "http.response.start" else status
            await send(message)

        try:
            await self.app(scope, read, sent)
        finally:
            seconds, route = time.perf_counter() - began, getattr(scope.get("route"), "path", ELSE)
            self.traffic.add(route, release_of(current), status, seconds)
            if current is not None and route in QUERIES:
                self.watch.observe(current.version, seconds, failed=status >= 500)


class State(Collector):
    """What is served and how it does, read at each scrape, so that nothing is told that is not so any more."""

    def __init__(self, follower: Follower, watch: Watch) -> None:
        self.follower, self.watch = follower, watch

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The gauges."""
        state, champion, canary = self.follower.state(), self.follower.current, self.follower.canary
        served = NONE if state.serving is None else state.serving
        yield _gauge("moon_release_served", "Version of moon-release that this process serves; -1: none.", served)
        asked = NONE if state.asked is None else state.asked
        yield _gauge("moon_release_asked", "Version of moon-release that the alias champion names; -1: none.", asked)
        told = "1 if another release than the one asked for is served, or none, or old vectors, or if lake, online store or a file is away."
        yield _gauge("moon_degraded", told, float(state.status != "ready"))
        items = 0.0 if champion is None else champion.index.header.items
        yield _gauge("moon_items_searchable", "Items in the index that this process searches.", items)
        if self.follower.since is not None:
            yield _gauge(
                "moon_release_since_seconds", "Since when this process serves the release, Unix time.", self.follower.since.timestamp()
            )
        if canary is not None:
            yield _gauge("moon_canary_errors", "Logged queries that the last candidate alone could not answer.", canary.errors)
            yield _gauge("moon_canary_p50_seconds", "Median of the last candidate's answers to logged queries.", canary.after.p50_ms / 1e3)
            if canary.overlap is not None:
                yield _gauge("moon_canary_overlap", "Share of the first ten that the last candidate finds, too.", canary.overlap)
        yield from self._watched()
        yield from self.watch.behind.collect()

    def _watched(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        standing = {alert.kind for alert in self.watch.alerts()}
        alerts = GaugeMetricFamily("moon_alert", "1 while something is past its limit.", labels=["kind"])
        for kind in KINDS:
            alerts.add_metric([kind], float(kind in standing))
        away = CounterMetricFamily("moon_store_faults", "Questions that lake or online store did not answer.", labels=["store"])
        for store, faults in list(self.watch.stores.faults.items()):
            away.add_metric([store], faults)
        yield from (alerts, away)
        shown = self.watch.shown()
        if shown.get("recall_at_10") is not None:
            yield _gauge("moon_probe_recall_at_10", "Share of known answers that are found.", shown["recall_at_10"])
        drift = GaugeMetricFamily("moon_score_drift", "Population stability index against the first hour.", labels=["route"])
        for kind, value in shown.get("drift", {}).items():
            if value is not None:
                drift.add_metric([f"/v1/{kind}"], value)
        yield drift


def release_of(champion: Champion | None) -> str:
    """The label of what is served."""
    return "none" if champion is None else str(champion.version)


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, value=float(value))
