"""What the jobs tell of their work beside its result: lineage of what was read and made, figures of freshness, and verdicts of gates."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence

from moon_ops import alerts
from moon_ops.errors import by_place, set_aside
from moon_ops.lake.ingest import IngestReport
from moon_ops.metric_names import IMAGE_SEARCH, catalogue, recall, stored
from moon_ops.release import freshness
from moon_ops.release.gates import Verdict
from moon_ops.settings import Settings
from moon_ops.telemetry import jobs, lineage, logs, traces

log = logging.getLogger(__name__)
GAUGES = {catalogue("with_vector"): "coverage", recall(IMAGE_SEARCH): "recall_at_10"}  # figure of a release → metric


def begin(settings: Settings) -> None:
    """At the start of a task: its log and its traces, as the settings and OpenTelemetry's variables say."""
    logs.start(settings.log)
    traces.start("moon-tasks")


def made(settings: Settings, stage: str, **facts: object) -> None:
    """Tell OpenLineage of a stage that has ended; :data:`~moon_ops.telemetry.lineage.FLOW` says which ``facts`` name its datasets."""

    def table(name: str) -> tuple[str, int | None]:
        there = settings.lake.exists(name)
        return settings.lake.address(name), int(settings.lake.open(name).version) if there else None

    lineage.tell(stage, table, **facts)


def published(settings: Settings, encoder: int, now: dt.datetime) -> None:
    """After a publication: its lineage, and how far the encoder's vectors lie behind the catalogue all the same."""
    made(settings, "publish", encoder=encoder)
    if not jobs.heard():
        return
    found = freshness.of(settings, encoder, now)
    if not found.unknown:
        jobs.gauge("items_without_vector", found.without_vector, encoder)
        jobs.gauge("vector_lag_seconds", found.waiting.total_seconds(), encoder)


def judged(settings: Settings, encoder: int, ctr: int | None, release: int, verdicts: Sequence[Verdict]) -> None:
    """After a release: its lineage, and each gate's verdict."""
    made(settings, "release", encoder=encoder, ctr=ctr, release=release)
    for verdict in verdicts:
        jobs.outcome(stored(verdict.gate), "passed" if verdict.passed else "stopped" if verdict.stops else "told")
        if verdict.gate in GAUGES:
            jobs.gauge(GAUGES[verdict.gate], verdict.value, encoder)


def taken_in(name: str, report: IngestReport, as_of: str) -> None:
    """After a directory of the drop zone: what was set aside is told, once, as it is not read again before it changes."""
    if report.erased:
        log.info("erased before, and not taken in: %s", by_place(report.erased, "row", "rows"))
    for note in report.notes:
        log.warning("%s", note)
    if report.warning:
        log.warning("%s", report.warning)
    if report.refused or report.unread:
        what = f"{set_aside(report.refused, report.unread)}; the first: {report.first_refusal}"
        alerts.tell(f"MOON_INBOX/{name}: {what}; `moon quarantine` lists them", dag="moon_ingest", run=as_of, reason=what)
