"""The answer to ``GET /metrics``: of this process, or of all processes of the service, told apart by the label ``process``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from moon_ops.serving.processes import Mates

PATH = "/metrics"


class Counts:
    """What a service counts; ``mates``: its other processes, if it has any."""

    def __init__(self, registry: CollectorRegistry, mates: Mates | None) -> None:
        self.registry, self.mates = registry, mates

    def families(self) -> list[Metric]:
        """The figures of all processes. Waits for the others, so it is asked in a thread."""
        if self.mates is None:
            return list(self.registry.collect())
        told: list[tuple[int, Iterable[Metric]]] = [(self.mates.own, self.registry.collect())]
        for number, text in self.mates.ask("GET", PATH).items():
            told.append((number, text_string_to_metric_families(text.decode())))
        return together(told)

    def add(self, app: FastAPI) -> None:
        """``/metrics``; another process of the service is told this one's figures alone."""

        @app.get(PATH, include_in_schema=False)
        async def metrics(request: Request) -> Response:
            alone = self.mates is None or self.mates.is_mate(request.headers.raw)
            families = self.registry.collect() if alone else await asyncio.to_thread(self.families)
            return Response(generate_latest(_Told(families)), media_type=CONTENT_TYPE_LATEST)


def together(told: Iterable[tuple[int, Iterable[Metric]]]) -> list[Metric]:
    """The metrics of several processes as one list: each sample with the number of its process as a label."""
    merged: dict[str, Metric] = {}
    for number, families in sorted(told, key=lambda one: one[0]):
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [sample._replace(labels={**sample.labels, "process": str(number)}) for sample in family.samples]
    return list(merged.values())


class _Told(Collector):
    """Metrics that have been collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        """They."""
        yield from self.families
