"""A collector on loopback that reads OTLP over HTTP with the protocol's official messages, and keeps what came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True)
class Came:
    """A span as it came over the wire."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    kind: int
    error: str
    attributes: dict[str, Any]
    evaluations: list[dict[str, Any]]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What came, and how to answer: `status` other than 200 refuses."""

    url: str = ""
    status: int = 200
    spans: list[Came] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = _dict(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans += [_came(span, resource) for span in scope.spans]

    def traces(self) -> dict[str, list[Came]]:
        """By trace, parents first: the first span of an episode has no parent."""
        found: dict[str, list[Came]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found


def _came(span: Any, resource: dict[str, Any]) -> Came:
    assert all(event.name == "gen_ai.evaluation.result" for event in span.events)
    return Came(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        kind=span.kind,
        error=span.status.message,
        attributes=_dict(span.attributes),
        evaluations=[_dict(event.attributes) for event in span.events],
        resource=resource,
    )


def _dict(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    held = getattr(value, kind)
    return [_value(each) for each in held.values] if kind == "array_value" else held


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if collector.status == 200:
                assert self.path == "/v1/traces"
                collector.headers.append(dict(self.headers))
                collector.take(body)
            self.send_response(collector.status)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
