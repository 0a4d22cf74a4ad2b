"""The log as one JSON object a line, by the setting ``MOON_LOG``; and what a line says beside its message: release, encoder, run, counts.

The fields are structlog's context variables, so that the log of an Airflow task, which is structlog's, has them as well.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import logging.config
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from moon_ops.telemetry import traces

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

LINES, JSON = KINDS = ("lines", "json")
HANDLER = "moon-json"
ON_STDERR: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "moon_ops.telemetry.logs.formatter"}},
    "handlers": {HANDLER: {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "loggers": {"moon_ops": {"level": "INFO"}},
    "root": {"level": "WARNING", "handlers": [HANDLER]},
}


def start(kind: str) -> None:
    """From now on each line of this process's log is a JSON object, if ``kind`` says so; a process that has a log, as a task of Airflow
    has, keeps it."""
    if kind == JSON and not logging.getLogger().handlers:
        logging.config.dictConfig(ON_STDERR)


def configuration(kind: str, lines: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the standard library's log as it is in ``lines``, or with JSON on stderr for the same loggers."""
    return {**ON_STDERR, "loggers": lines["loggers"]} if kind == JSON else dict(lines)


def formatter() -> ProcessorFormatter:
    """``time``, ``level``, ``logger`` and ``message`` first, then the fields; a fault with its traceback in ``exception``."""
    import structlog
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

    return ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, add_log_level, add_logger_name, ExtraAdder(), _timed],
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            _in_order,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ],
    )


def _timed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When it was logged, and within which trace."""
    event["time"] = dt.datetime.fromtimestamp(event["_record"].created, dt.UTC).isoformat(timespec="milliseconds")
    if found := traces.trace_id():
        event["trace_id"] = found
    return event


def _in_order(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = ("time", "level", "logger", "message")
    rest = {name: value for name, value in event.items() if name not in first and not name.startswith("_")}
    return {name: event[name] for name in first} | rest


def is_json() -> bool:
    """Whether this process's log was made JSON here; Airflow's, which may be JSON as well, is no log of ours."""
    return any(handler.name == HANDLER for handler in logging.getLogger().handlers)


@contextlib.contextmanager
def fields(**said: Any) -> Iterator[None]:
    """Say these beside each message within; a process without structlog has nowhere to say it."""
    if "structlog" not in sys.modules:
        yield
        return
    from structlog.contextvars import bound_contextvars

    with bound_contextvars(**{name: value for name, value in said.items() if value not in (None, "")}):
        yield
