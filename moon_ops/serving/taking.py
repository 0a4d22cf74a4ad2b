"""Rows that come over HTTP, taken in as a shop's files are: by the same rules, and on the disk before they are acknowledged."""

from __future__ import annotations

import datetime as dt
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moon_ops.errors import InputError
from moon_ops.lake import durable, ids
from moon_ops.lake.ingest import Feed, IngestReport, ingest
from moon_ops.lake.schemas import SCHEMAS
from moon_ops.publication import places
from moon_ops.settings import Settings

log = logging.getLogger(__name__)
Fill = Callable[[Path], None]


def take(settings: Settings, fill: Fill, now: dt.datetime, patience: float) -> IngestReport:
    """Ingest what ``fill`` writes into an empty directory; it survives a killed process and a lost machine when this returns.

    Nothing that it says is undone by a file that was taken in before. Raises :class:`InputError` if none of it can be used, and
    :class:`~moon_ops.errors.ServiceError` if others have kept the lake busy for ``patience`` seconds.
    """
    places.require_lake(settings)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        report = ingest(Path(folder), settings.lake, now=now, workers=settings.workers, patience=patience, feed=Feed(once=True))
    durable.sync(settings.lake, list(SCHEMAS), began)
    if report.warning:
        log.warning("%s", report.warning)
    return report


def require_some(report: IngestReport, what: str) -> None:
    """:class:`InputError` with the reason if nothing of a request was taken in."""
    used = report.items + report.updated + report.queries + report.events + report.known
    if (report.refused or report.erased) and not used:
        raise InputError(f"no {what} could be used ({report.first_refusal})", action="mend it and send it again")


def write_rows(place: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole(given: Any) -> Any:
    """A whole float, as some clients write every number, as the number."""
    return int(given) if isinstance(given, float) and given.is_integer() and abs(given) < ids.EXACT else given
