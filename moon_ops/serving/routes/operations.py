"""What the page's tab for operators shows beside ``/ready``: requests by route, and the last moves of releases."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from prometheus_client import Metric

from moon_ops.registry import moves as record
from moon_ops.serving.follower import Follower
from moon_ops.serving.service import Service

log = logging.getLogger(__name__)
FRESH = 15.0  # seconds that moves are remembered: the registry is not asked by every look
SHOWN = 10  # moves
GAUGES = {"coverage": "moon_catalogue_coverage", "lag_seconds": "moon_vector_lag_seconds"}


def add(app: FastAPI, service: Service) -> None:
    """``/admin/operations``."""
    moves = Moves(service.follower)

    @app.get("/admin/operations")
    def operations() -> dict[str, Any]:
        """Requests by route since the service began, with the seconds within which half and 99 % were answered; how much of the catalogue
        has a vector and how far vectors are behind; and the last moves, newest first; null for what is not known.
        """
        families = service.counts.families()
        told = {name: gauge(families, metric) for name, metric in GAUGES.items()}
        return {**told, "routes": routes(families), "moves": moves.told()}


class Moves:
    """The last moves in words."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self._told: list[str] | None = None
        self._asked = -FRESH

    def told(self) -> list[str] | None:
        """Newest first; None if the registry does not answer."""
        if time.monotonic() - self._asked > FRESH:
            self._asked = time.monotonic()
            try:
                self._told = [move.told() for move in reversed(record.moves(self.follower.registry)[-SHOWN:])]
            except Exception as fault:  # a registry that is away has a line at /ready
                log.info("the moves cannot be read: %s", fault)
                self._told = None
        return self._told


def gauge(families: Iterable[Metric], name: str) -> float | None:
    """A figure as ``/metrics`` has it; None if it has none."""
    return next((sample.value for family in families for sample in family.samples if sample.name == name), None)


def routes(families: Iterable[Metric]) -> list[dict[str, Any]]:
    """How requests went by route, of all releases together."""
    count: dict[str, float] = defaultdict(float)
    failed: dict[str, float] = defaultdict(float)
    within: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for family in families:
        for sample in family.samples:
            route = sample.labels.get("route", "")
            if sample.name == "moon_requests_total":
                count[route] += sample.value
                failed[route] += sample.value if sample.labels["code"] >= "500" else 0.0
            elif sample.name == "moon_request_seconds_bucket":
                within[route][float(sample.labels["le"])] += sample.value
    return [
        {"route": route, "requests": int(count[route]), "failed": int(failed[route])}
        | {"p50": quantile(0.5, within[route]), "p99": quantile(0.99, within[route])}
        for route in sorted(count)
        if route.startswith("/v1/")
    ]


def quantile(share: float, within: Mapping[float, float]) -> float | None:
    """Seconds within which a share of the requests ended, between the bounds of a histogram's buckets as Prometheus reads them."""
    bounds = sorted(within)
    if not bounds or not within[bounds[-1]]:
        return None
    wanted, before, below = share * within[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if within[bound] >= wanted:
            return below if bound == float("inf") else below + (bound - below) * (wanted - before) / max(within[bound] - before, 1e-12)
        before, below = within[bound], bound
    return below
