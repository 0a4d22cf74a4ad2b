"""A collector of OpenTelemetry, as small as can be: what is posted to it by OTLP over HTTP, decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Collector:
    """``spans`` and ``metrics`` as they came in; ``endpoint`` is its address."""

    endpoint: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def of(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def take(self, path: str, body: bytes) -> None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = values(resource.resource.attributes)["service.name"]
                self.spans += [told(span, service) for scope in resource.scope_spans for span in scope.spans]
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics if path == "/v1/metrics" else ():
            for metric in [metric for scope in resource.scope_metrics for metric in scope.metrics]:
                points = [*metric.sum.data_points, *metric.gauge.data_points]
                self.metrics.setdefault(metric.name, []).extend(point.as_double or float(point.as_int) for point in points)


def told(span: Any, service: str) -> dict[str, Any]:
    ids = {"trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex()}
    links = [link.trace_id.hex() for link in span.links]
    return {"name": span.name, "service": service, **ids, "links": links, "facts": values(span.attributes), "failed": span.status.code == 2}


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
