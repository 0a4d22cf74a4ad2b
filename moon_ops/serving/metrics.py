"""What a service tells Prometheus: which release it serves, which one it is asked for, and whether these are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from moon_ops.serving.follower import Follower

NONE = -1.0  # no release


class _State(Collector):
    """Read at each scrape, so that nothing is told that is not so any more."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        state = self.follower.state()
        served = GaugeMetricFamily("moon_release_served", "Version of moon-release that this process serves; -1: none.")
        served.add_metric([], NONE if state.serving is None else state.serving)
        asked = GaugeMetricFamily("moon_release_asked", "Version of moon-release that the alias champion names; -1: none.")
        asked.add_metric([], NONE if state.asked is None else state.asked)
        degraded = GaugeMetricFamily("moon_degraded", "1 if another release than the one asked for is served, or none, or old vectors.")
        degraded.add_metric([], float(state.status != "ready"))
        champion = self.follower.current
        items = GaugeMetricFamily("moon_items_searchable", "Items in the index that this process searches.")
        items.add_metric([], 0.0 if champion is None else champion.index.header.items)
        yield from (served, asked, degraded, items)


def exposition(follower: Follower) -> Callable[[], Response]:
    """The answer to ``GET /metrics`` of one service."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_State(follower))

    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return metrics
