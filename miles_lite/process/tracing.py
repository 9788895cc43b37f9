"""Spans of OpenTelemetry (https://opentelemetry.io/docs/specs/otel/trace/), where somebody collects them.

Invariant: before `start` nothing of OpenTelemetry is imported, and a span is a look at a variable. From then on no
collector slows or stops anything: spans wait in a bounded queue, which a thread sends from; what cannot be sent is
lost, and a process says so once. Across processes a trace is carried by W3C's headers
(https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from miles_lite.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

SEND_SECONDS = 2.0
"""How long a collector may take for some spans."""
EVERY_SECONDS = 1.0
END_SECONDS = 2.0
"""How long the end of a process waits for what is still to be sent."""
CARRIED = ("traceparent", "tracestate")
QUEUE = "opentelemetry.sdk._shared_internal"
"""The logger of that queue."""
PATH = "/v1/traces"
"""Of a collector, where its URL names none."""
MISSING = "--otlp-endpoint needs OpenTelemetry: pip install 'miles_lite[otlp]'"
Value = str | int | float | bool
NOWHERE: Mapping[str, str] = {}


class Note(Protocol):
    """Says more of a span that has begun."""

    def __call__(self, **attributes: Value | None) -> None: ...


class _Tracing:
    """The spans of this process, on their way to a collector."""

    def __init__(self, endpoint: str, role: str) -> None:
        """Raises UserError where OpenTelemetry is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise UserError(f"{MISSING} ({error})") from error
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it says of lost spans, it says each time
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=url if url.endswith(PATH) else url + PATH, timeout=SEND_SECONDS)
        resource = Resource.create({"service.name": "miles_lite", "service.instance.id": role})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        lost = _Lost(url)
        sending = BatchSpanProcessor(_warning_exporter(exporter, lost), schedule_delay_millis=1000 * EVERY_SECONDS)
        self._provider.add_span_processor(sending)
        self.tracer = self._provider.get_tracer("miles_lite")
        self.carrier = TraceContextTextMapPropagator()

    def within(self, parent: Mapping[str, str]) -> Context:
        """What a span is in that others' headers name; where they name none, the one that is open here."""
        from opentelemetry.context import get_current

        return self.carrier.extract(parent, context=get_current())

    def close(self) -> None:
        """Send what is left, for END_SECONDS at most."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(END_SECONDS)


_tracing: _Tracing | None = None


def start(endpoint: str | None, role: str) -> None:
    """From now on this process sends its spans to `endpoint`, as `role`, once; without one it has none. Raises
    UserError where OpenTelemetry is not installed."""
    global _tracing
    if endpoint is not None and _tracing is None:
        _tracing = _Tracing(endpoint, role)


def stop() -> None:
    """Send what is left, within END_SECONDS; there are no more. Idempotent."""
    global _tracing
    tracing, _tracing = _tracing, None
    if tracing is not None:
        tracing.close()


def collected() -> bool:
    """Whether somebody collects spans of this process."""
    return _tracing is not None


@contextlib.contextmanager
def sent_to(endpoint: str | None, role: str) -> Iterator[None]:
    """`start` and, after the block, `stop`."""
    start(endpoint, role)
    try:
        yield
    finally:
        stop()


@contextlib.contextmanager
def span(name: str, *, parent: Mapping[str, str] = NOWHERE, **attributes: Value | None) -> Iterator[Note]:
    """The block, in the span that the headers of `parent` name or in the one that is open here. An attribute that is
    None is left out; an error that leaves the block is the span's."""
    tracing = _tracing
    if tracing is None:
        yield _unheard
        return
    with tracing.tracer.start_as_current_span(
        name, context=tracing.within(parent), attributes=_without_none(attributes)
    ) as opened:
        yield lambda **more: opened.set_attributes(_without_none(more))


def past(name: str, began: float, ended: float, **attributes: Value | None) -> None:
    """A span of what has happened already, in the one that is open here; seconds since the epoch."""
    if _tracing is not None:
        told = _tracing.tracer.start_span(name, start_time=int(began * 1e9), attributes=_without_none(attributes))
        told.end(int(ended * 1e9))


def headers() -> dict[str, str]:
    """What makes a request belong to the span that is open here."""
    carried: dict[str, str] = {}
    if _tracing is not None:
        _tracing.carrier.inject(carried)
    return carried


def carried(given: Mapping[str, str]) -> Mapping[str, str]:
    """Of a request's headers those that name its span; empty where there are none, or nobody collects."""
    return NOWHERE if _tracing is None else {name: given[name] for name in CARRIED if name in given}


def _without_none(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}


def _unheard(**_: Value | None) -> None:
    """Nobody collects."""


class _Lost(logging.Filter):
    """Says once that spans are lost. Where they are because its queue is full, OpenTelemetry says so each time, and is
    heard here instead."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._warned = url, False
        queue = logging.getLogger(QUEUE)
        queue.setLevel(logging.WARNING)
        queue.filters = [self]

    def filter(self, record: logging.LogRecord) -> bool:
        self.warn_once()
        return False

    def warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s does not take spans, or not as fast as they come: the run goes on without those", self._url)


def _warning_exporter(exporter: SpanExporter, lost: _Lost) -> SpanExporter:
    """The same, which tells of what it could not export."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class WarningExporter(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                lost.warn_once()
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return WarningExporter()
