"""Spans of OpenTelemetry, where its own ``OTEL_`` variables ask for them; without these nothing of it is imported, and nothing is kept.

The library only opens spans. Which provider takes them is said by the process: Airflow's, where it traces, else the one of :func:`start`.
MLflow keeps a provider of its own for its own traces, and neither sees the other's.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link

log = logging.getLogger(__name__)
Fact = str | int | float | bool | None
NAME = "moon"  # in front of a span's name and of its attributes
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PARENT = "TRACEPARENT"  # in the environment of a process that another one has started for a part of its work
FLUSH_MILLISECONDS = 2000  # that the end of a service waits for its collector
UNTRACED = "health,ready,metrics"  # asked by machines every few seconds


def wanted() -> bool:
    """Whether the variables name somewhere to send spans to."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return exporter == "console" or any(os.environ.get(name) for name in ENDPOINTS)


def start(service: str) -> None:
    """Send this process's spans where the variables say, under the name ``service`` unless ``OTEL_SERVICE_NAME`` says another.

    For entry points; a process that has a provider keeps it. What is not installed is said in the log, and ends nothing.
    """
    if not wanted():
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}).merge(OTELResourceDetector().detect()))
        provider.add_span_processor(BatchSpanProcessor(_exporter()))
        trace.set_tracer_provider(provider)
    except ImportError as missing:
        log.warning('OTEL_ variables ask for traces, but there are none (%s): pip install "moon_ops[serve]"', missing)


def flush() -> None:
    """Send what waits to be sent: for a process whose end nobody waits for."""
    if (trace := _api()) is not None and (send := getattr(trace.get_tracer_provider(), "force_flush", None)) is not None:
        send(timeout_millis=FLUSH_MILLISECONDS)


def _exporter() -> SpanExporter:
    """What the variables name, as OpenTelemetry's packages offer it; OTLP over HTTP where no protocol is named."""
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = next((said for said in map(os.environ.get, PROTOCOLS) if said), "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        raise ImportError(f"no package offers the exporter {name!r}")
    made: SpanExporter = found.load()()
    return made


@contextlib.contextmanager
def span(name: str, *, after: str = "", **facts: Fact) -> Iterator[dict[str, Any]]:
    """A span around a piece of work; what is written into the dictionary meanwhile becomes its attributes, too.

    It is a child of the present span, or else of the one in ``TRACEPARENT``; ``after`` is the :func:`traceparent` of work elsewhere that it
    goes on from, which becomes a link. A fault is recorded in it, and goes on.
    """
    found: dict[str, Any] = dict(facts)
    if (trace := _api()) is None:
        yield found
        return
    opened = trace.get_tracer("moon_ops").start_as_current_span(f"{NAME}.{name}", context=_parent(), links=_links(after))
    with opened as present:
        try:
            yield found
        finally:
            present.set_attributes({f"{NAME}.{key}": value for key, value in found.items() if value is not None})


def traceparent() -> str:
    """The present span as W3C writes it, for :func:`span`'s ``after``; empty where there is none."""
    if _api() is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return found.get(PARENT.lower(), "")


def trace_id() -> str:
    """The present trace as 32 hexadecimal digits, as every tool shows it; empty where there is none."""
    return traceparent().partition("-")[2].partition("-")[0]


def _api() -> ModuleType | None:
    """OpenTelemetry's API, where spans are wanted; None where it is not installed, which :func:`start` has said."""
    if not wanted():
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace


def _parent() -> Context | None:
    """None for the present context."""
    from opentelemetry import trace

    given = os.environ.get(PARENT)
    return _context(given) if given and not trace.get_current_span().get_span_context().is_valid else None


def _links(after: str) -> list[Link]:
    from opentelemetry import trace

    there = trace.get_current_span(_context(after)).get_span_context() if after else None
    return [trace.Link(there)] if there is not None and there.is_valid else []


def _context(traceparent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({PARENT.lower(): traceparent})


def of_requests(app: FastAPI) -> None:
    """A span for each request of the service, within the trace that its ``traceparent`` names; none for health checks and metrics."""
    if not wanted():
        return
    try:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    except ImportError:  # said by `start`
        return
    FastAPIInstrumentor.instrument_app(app, excluded_urls=UNTRACED, exclude_spans=["receive", "send"])
