"""Metrics of jobs, told through Airflow's own: to StatsD or by OTLP, as its settings say. Where no Airflow runs a stage, nobody is told."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import ModuleType

from moon_ops.telemetry.traces import Fact

COUNTERS = {  # stage → fact → metric; deploy/statsd/mapping.yml has the same names
    "ingest": {
        "items": "items_new",
        "updated": "items_changed",
        "withdrawn": "items_withdrawn",
        "events": "events_taken",
        "refused": "rows_refused",
        "unread": "pictures_unread",
    },
    "embed": {
        "items.embedded": "items_embedded",
        "items.excused": "items_excused",
        "items.unread": "pictures_unread",
        "queries.embedded": "queries_embedded",
    },
    "publish": {"changed": "rows_published"},
}


def count(stage: str, facts: Mapping[str, Fact]) -> None:
    """Count what a stage has done."""
    for fact, metric in COUNTERS.get(stage, {}).items():
        if (stats := _stats()) is not None and (number := facts.get(fact)):
            stats.incr(f"moon.{metric}", int(number))


def heard() -> bool:
    """Whether anybody is told: a figure that costs something need not be asked for where nobody is."""
    if _stats() is None:
        return False
    from airflow.sdk.configuration import conf

    return any(conf.getboolean("metrics", name, fallback=False) for name in ("statsd_on", "statsd_datadog_enabled", "otel_on"))


def gauge(metric: str, value: float, encoder: int) -> None:
    """A figure as it is now, of one encoder's vectors."""
    if (stats := _stats()) is not None:
        stats.gauge(f"moon.{metric}.{encoder}", value)


def outcome(gate: str, outcome: str) -> None:
    """Count a gate's verdict: ``passed``, ``stopped``, or ``told`` for one that was not passed and stops nothing."""
    if (stats := _stats()) is not None:
        stats.incr(f"moon.gate.{re.sub(r'[^A-Za-z0-9_-]', '_', gate)}.{outcome}")


def _stats() -> ModuleType | None:
    """Airflow's metrics, in a process that Airflow has started."""
    if "airflow.sdk" not in sys.modules:
        return None
    from airflow.sdk.observability import stats

    return stats
