from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from miles_lite.engine.liveness import Liveness, activity
from tests.waiting import wait_until

SERVER = """
import http.server, subprocess, sys, threading

work = {"busy": "while True: pass", "idle": "import time; time.sleep(600)"}[sys.argv[1]]
child = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\n" + work], stdout=subprocess.PIPE)
child.stdout.readline()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if sys.argv[2] == "silent":
            threading.Event().wait(600)
        self.send_response(503 if sys.argv[2] == "refuses" else 200)
        self.end_headers()

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, child.pid, flush=True)
server.serve_forever()
"""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, str, int]]:
    """A process whose child computes or not, and whose endpoint answers or not: pid, URL, the child's pid."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, *request.param], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, child = process.stdout.readline().split()
    yield process.pid, f"http://127.0.0.1:{port}", int(child)
    os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdout.close()


def judge(server: tuple[int, str, int], *, timeout: float = 0.5, patience: float = 60.0, probes: int = 1) -> str | None:
    async def probe() -> str | None:
        liveness = Liveness(server[0], server[1], timeout=timeout, patience=patience)
        return [await liveness.probe() for _ in range(probes)][-1]

    return asyncio.run(probe())


@pytest.mark.parametrize("server", [("idle", "answers"), ("busy", "answers")], indirect=True)
def test_a_server_that_answers_lives(server):
    assert judge(server, timeout=60.0) is None


@pytest.mark.parametrize("server", [("busy", "silent")], indirect=True)
def test_one_that_computes_without_an_answer_lives_until_patience_ends(server):
    assert judge(server) is None
    assert "no token for" in str(judge(server, patience=1.0, probes=3))


@pytest.mark.parametrize("server", [("busy", "silent")], indirect=True)
def test_one_whose_child_is_stopped_hangs(server):
    os.kill(server[2], signal.SIGSTOP)
    wait_until(lambda: not activity(server[0]).ready, "the child to stop")
    assert "it hangs" in str(judge(server))


@pytest.mark.parametrize("server", [("idle", "silent")], indirect=True)
def test_one_that_neither_answers_nor_computes_hangs(server):
    wait_until(lambda: not activity(server[0]).ready, "the child to fall asleep")
    assert "does not answer within 0.5 s, and nothing is computed: it hangs" in str(judge(server))


@pytest.mark.parametrize("server", [("idle", "refuses")], indirect=True)
def test_what_a_server_answered_is_said_and_no_wait_that_was_none(server):
    wait_until(lambda: not activity(server[0]).ready, "the child to fall asleep")
    told = judge(server, timeout=60.0)
    assert told == "/health_generate answers 503, and nothing is computed: it hangs"
    assert "/health_generate cannot be asked (" in str(judge((server[0], "http://127.0.0.1:9", server[2])))


@pytest.mark.parametrize("server", [("busy", "answers")], indirect=True)
def test_activity_is_that_of_the_children(server):
    before = activity(server[0])
    wait_until(lambda: activity(server[0]).seconds > before.seconds, "it to compute")
    assert activity(server[2]).seconds == 0


THREADS = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
while True:
    threading.Thread(target=int).start()
"""


def test_a_thread_that_ends_meanwhile_hides_no_child():
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert all(activity(process.pid).ready for _ in range(2000))
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("server", [("busy", "silent")], indirect=True)
async def test_time_in_which_a_server_was_told_to_be_still_does_not_count(server):
    liveness = Liveness(server[0], server[1], timeout=0.1, patience=1.0)
    await asyncio.sleep(1.0)
    liveness.rest()
    assert await liveness.probe() is None
    await asyncio.sleep(1.0)
    assert "no token for" in str(await liveness.probe())
