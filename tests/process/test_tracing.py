"""Spans reach a collector, and one that is not there costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from miles_lite.config.flags import parser_of, take
from miles_lite.config.tracking import Tracing
from miles_lite.errors import UserError
from miles_lite.process import tracing
from tests.collector import collecting
from tests.ports import free_port
from tests.waiting import wait_until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    tracing.stop()


def test_without_a_collector_nothing_is_imported_and_nothing_carried() -> None:
    code = (
        "import sys; from miles_lite.process import tracing\n"
        "tracing.start(None, 'x')\n"
        "with tracing.span('turn', parent={'traceparent': 'x'}, session='y') as note: note(a=1)\n"
        "assert tracing.headers() == {} == dict(tracing.carried({'traceparent': 'x'})); tracing.past('tool', 0, 1)\n"
        "tracing.stop(); print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout.strip() == "False", said.stderr


async def test_spans_are_nested_across_tasks_and_headers_and_carry_what_is_noted() -> None:
    with collecting() as collector:
        tracing.start(collector.url, "here")

        async def inner() -> dict[str, str]:
            with tracing.span("engine request", attempt=0) as note:
                note(version=3, reason=None)
                return tracing.headers()

        with tracing.span("turn", parent={"traceparent": PARENT}, session="s"):
            headers = await asyncio.create_task(inner())
            tracing.past("tool", 100.0, 102.5, names="bash")
        with pytest.raises(ValueError, match="bad"), tracing.span("turn", parent=headers):
            raise ValueError("bad")
        with tracing.span("turn", parent={"traceparent": "nonsense"}):
            pass
        await asyncio.to_thread(tracing.stop)
    (engine, tool, turn, below, alone) = collector.spans
    assert {span.trace for span in collector.spans[:4]} == {PARENT.split("-")[1]}
    assert turn.parent == PARENT.split("-")[2]
    assert engine.parent == tool.parent == turn.id
    assert below.parent == engine.id
    assert headers["traceparent"].split("-")[1:3] == [engine.trace, engine.id]
    assert (engine.attributes, turn.attributes) == ({"attempt": 0, "version": 3}, {"session": "s"})
    assert (tool.began, tool.ended, tool.attributes) == (100.0, 102.5, {"names": "bash"})
    assert [span.failed for span in collector.spans] == [False, False, False, True, False]
    assert alone.parent == ""
    assert {span.role for span in collector.spans} == {"here"}


def test_a_collector_that_is_not_there_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), tracing.sent_to(f"http://127.0.0.1:{free_port()}", "here"):
        for _ in range(5000):  # more than can wait
            with tracing.span("turn"):
                pass
        wait_until(lambda: "does not take spans" in caplog.text, "the exporter to give up")
        for _ in range(1000):
            with tracing.span("turn"):
                pass
    assert caplog.text.count("does not take spans") == 1
    assert len(caplog.records) == 1


def test_one_that_takes_them_slower_than_they_come_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    said = threading.Event()

    def drip(server: socket.socket) -> None:
        """An answer that never ends, and is never so late as to be given up."""
        with contextlib.suppress(OSError):
            taken, _ = server.accept()
            for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", itertools.repeat(32)):
                taken.send(bytes([byte]))
                if said.wait(0.2):
                    return

    with socket.create_server(("127.0.0.1", 0)) as server, caplog.at_level(logging.WARNING):
        dripping = threading.Thread(target=drip, args=(server,))
        dripping.start()
        with tracing.sent_to(f"http://127.0.0.1:{server.getsockname()[1]}", "here"):
            for _ in range(10_000):  # more than can wait
                with tracing.span("turn"):
                    pass
        said.set()
    dripping.join(10)
    assert caplog.text.count("not as fast as they come") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_one_that_answers_errors_is_said_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server, caplog.at_level(logging.WARNING):
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        with tracing.sent_to(f"http://127.0.0.1:{server.server_port}", "here"):
            for _ in range(2):
                with tracing.span("turn"):
                    pass
                wait_until(lambda: "does not take spans" in caplog.text, "the exporter to give up")
        server.shutdown()
        serving.join()
    assert len([record for record in caplog.records if record.name.startswith("miles_lite")]) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://", "http://collector:x"])
def test_what_is_no_collector_is_refused(url: str) -> None:
    parser = parser_of(Tracing, prog="x")
    with pytest.raises(UserError, match=r"--otlp-endpoint .*must be http://host:port"):
        take(parser.parse_args(["--otlp-endpoint", url]), Tracing)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"pip install 'miles_lite\[otlp\]'"):
        tracing.start("http://127.0.0.1:4318", "here")
