"""Sends the spans of episodes to a collector: beside the run, which never waits for it and never ends by it.

The recorder's thread tells of an episode as soon as its row is made; OpenTelemetry's own batching thread sends. What
the collector does not take is dropped and counted, and so is an episode for which there is no room. Ids follow from
what names an episode, so its trace is found again; where it was told of twice, the trace has two first spans, of which
the later one counts.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

import milepost
from milepost.cluster.tracing.config import TracingConfig
from milepost.cluster.tracing.spans import SpanTold, Traced, spans_of
from milepost.cluster.trajectories.recording import Recording
from milepost.cluster.trajectories.table import Judged

logger = logging.getLogger(__name__)
EVALUATION_EVENT: Final = "gen_ai.evaluation.result"
_WAITING_BYTES: Final = 64 * 1024**2
_SPAN_BYTES: Final = 1024
"""Of a span without texts, about."""
_TEXTS: Final = 4
"""Times that a text's bound can be in a span."""
_BATCH: Final = 512
_LAST_WORDS_S: Final = 10.0


class Tracing:
    """The spans of one run. Its methods may be called at any time and return at once, `close` aside."""

    def __init__(self, config: TracingConfig, run_id: str) -> None:
        """Send to `config.endpoint`, with the credentials that the variables OTEL_EXPORTER_OTLP_... give."""
        self.problem = ""
        """That spans are lost, for people; empty while all is well. After `close`, how many were."""
        self._config, self._run_id = config, run_id
        self._sampler = TraceIdRatioBased(config.sample)
        self._most = _WAITING_BYTES // (_SPAN_BYTES + _TEXTS * config.text_chars)
        self._lock = threading.Lock()
        self._told = self._sent = self._failed = 0
        self._ids = _Ids()
        self._exporter = _CountingExporter(OTLPSpanExporter(endpoint=f"{config.endpoint}/v1/traces"), self._count)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=self._most, max_export_batch_size=min(_BATCH, self._most)
        )
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=_resource(config.service, run_id),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("milepost", milepost.__version__)

    @property
    def counts(self) -> dict[str, int]:
        """Spans by what became of them: sent, or lost."""
        with self._lock:
            return {"sent": self._sent, "lost": self._failed}

    def episode(self, number: int, recording: Recording, judged: Judged, texts: Sequence[tuple[str, str]]) -> None:
        """An episode whose row `number` was made. Never raises."""
        try:
            episode = Traced(run_id=self._run_id, number=number, recording=recording, judged=judged, texts=texts)
            trace_id = _number(16, episode.key)
            if self._sampler.should_sample(None, trace_id, "").decision is not Decision.DROP:
                self._tell(trace_id, number, spans_of(episode, self._config.text_chars))
        except Exception as error:  # a meter ends no run
            self._say(f"an episode could not be traced ({type(error).__name__}: {error})")

    def close(self) -> None:
        """Send what waits, within 10 s, and count the rest as lost."""
        flushing = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        flushing.start()
        flushing.join(_LAST_WORDS_S)
        self._exporter.shutdown()
        with self._lock:
            self._failed = self._told - self._sent
        if self._failed:
            self.problem = f"{self._failed} of {self._told} spans did not reach {self._config.endpoint}"

    def _tell(self, trace_id: int, number: int, told: Sequence[SpanTold]) -> None:
        with self._lock:
            waiting = self._told - self._sent - self._failed
            has_room = waiting + len(told) <= self._most
            self._told += len(told)
            self._failed += 0 if has_room else len(told)
        if not has_room:
            self._say(f"{self._config.endpoint} takes fewer spans than the run makes: lower tracing.sample")
            return
        made: list[Span] = []
        for place, span in enumerate(told):
            self._ids.trace_id, self._ids.span_id = trace_id, _number(8, f"{trace_id}/{number}/{place}")
            parent = Context() if span.parent is None else set_span_in_context(made[span.parent], Context())
            made.append(self._start(span, parent))
        for span, opened in zip(told, made, strict=True):
            opened.end(_nanoseconds(span.end_s))

    def _start(self, told: SpanTold, parent: Context) -> Span:
        span = self._tracer.start_span(
            told.name,
            parent,
            SpanKind.CLIENT if told.attributes.get("gen_ai.operation.name") == "chat" else SpanKind.INTERNAL,
            told.attributes,
            start_time=_nanoseconds(told.start_s),
        )
        for evaluation in told.evaluations:
            span.add_event(EVALUATION_EVENT, evaluation, _nanoseconds(told.end_s))
        if told.error:
            span.set_status(Status(StatusCode.ERROR, told.error))
        return span

    def _count(self, spans: int, is_sent: bool) -> None:
        with self._lock:
            self._sent += spans if is_sent else 0
            self._failed += 0 if is_sent else spans
        if not is_sent:
            self._say(f"{self._config.endpoint} does not take spans; the log says why")
            logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)  # once is enough

    def _say(self, what: str) -> None:
        if not self.problem:
            self.problem = f"{what}; the run goes on, and what is lost is counted in milepost_spans_total"
            logger.warning("%s", self.problem)


class _CountingExporter(SpanExporter):
    """Tells of every batch how many spans it held, and whether they were sent; after `shutdown` of none."""

    def __init__(self, exporter: SpanExporter, count: Callable[[int, bool], None]) -> None:
        self._exporter, self._count = exporter, count
        self._is_over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; False is counted where it raises as well."""
        result = SpanExportResult.FAILURE
        try:
            if not self._is_over:
                result = self._exporter.export(spans)
        finally:
            if not self._is_over:
                self._count(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """End a wait between two tries."""
        if not self._is_over:
            self._is_over = True
            self._exporter.shutdown()


class _Ids(IdGenerator):
    """Gives the ids that were put here last."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_span_id(self) -> int:
        """The span's, 64 bits."""
        return self.span_id

    def generate_trace_id(self) -> int:
        """The trace's, 128 bits."""
        return self.trace_id


def _resource(service: str, run_id: str) -> Resource:
    return Resource.create(
        {
            "service.name": service,
            "service.version": milepost.__version__,
            "service.instance.id": run_id,
            "openinference.project.name": service,
        }
    )


def _number(num_bytes: int, text: str) -> int:
    """An id for `text`, never 0, which OpenTelemetry takes for none."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:num_bytes], "big") or 1


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
