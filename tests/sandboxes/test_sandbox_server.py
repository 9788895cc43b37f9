"""Sandboxes for other machines: lost answers, clients and servers that are gone, keys."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from miles_lite.errors import RolloutError, UserError, Where
from miles_lite.sandboxes import over_http, provider, sandbox_server
from miles_lite.sandboxes.files import get, put
from miles_lite.sandboxes.lending import Limits, Pool
from miles_lite.sandboxes.local import Folders
from miles_lite.sandboxes.sandbox_server import GoneError, Sandboxes, Wanted, application
from tests.e2e.job import ROOT, environment
from tests.http_server import http_server
from tests.processes import below, running
from tests.sandboxes.kinds import needs_bwrap
from tests.sandboxes.servers import served, serving
from tests.sandboxes.test_lending import Told
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--kind", "local", "--at-once", "4") as url:
        yield url


def test_what_is_asked_twice_is_done_once(url: str) -> None:
    """As a client does whose answer was lost."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(2):
            assert client.put("/sandboxes/x", json={}).status_code == 204
        asked = {"number": "1", "command": "echo 1 >> done; cat done", "seconds": 20}
        answers = [client.post("/sandboxes/x/commands", json=asked).json() for _ in range(2)]
        assert answers[0] == answers[1]
        assert answers[0]["stdout"] == "1\n"
        assert client.post("/sandboxes/x/commands", json=asked | {"number": "2"}).json()["stdout"] == "1\n1\n"
        assert client.get("/health").json() == {"sandboxes": 1}
        for _ in range(2):
            assert client.delete("/sandboxes/x").status_code == 204
        gone = client.post("/sandboxes/x/commands", json=asked)
        assert (gone.status_code, gone.json()["detail"]) == (404, "no sandbox x: it was never started, or has ended")


def test_requests_that_make_no_sense_are_refused(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        client.put("/sandboxes/y", json={})
        for command in (
            {},
            {"number": "1", "command": "true", "seconds": 0},
            {"number": "1", "command": 3, "seconds": 1},
        ):
            assert client.post("/sandboxes/y/commands", json=command).status_code == 422
        assert client.put("/sandboxes/y/files", content=b"no archive").status_code == 503
        assert client.put("/sandboxes/..%2Fy", json={}).status_code in (404, 422)
        client.delete("/sandboxes/y")


def test_an_answer_that_is_lost_on_the_way_is_asked_for_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http, "BACKOFF", 0.001)
    real, lost = httpx.Client.request, set[str]()

    def losing(self: httpx.Client, method: str, address: str, **given: object) -> httpx.Response:
        answer = real(self, method, address, **given)  # type: ignore[arg-type]
        if f"{method} {address}" in lost:
            return answer
        lost.add(f"{method} {address}")
        raise httpx.ReadError("lost")

    kind = provider(url)
    monkeypatch.setattr(httpx.Client, "request", losing)
    sandbox = kind.start("again", None, None)
    put(sandbox, {"x": b"1"})
    assert sandbox.run("cat x; echo 2 >> x", seconds=20).stdout == "1"
    assert get(sandbox, "x") == b"12\n"
    sandbox.close()
    assert len(lost) == 5


def test_a_server_that_is_gone_is_the_environments_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http, "BACKOFF", 0.001)
    with serving("--kind", "local") as (url, process):
        sandbox = provider(url).start("lost", None, None)
        running = threading.Timer(0.5, process.kill)
        running.start()
        with pytest.raises(RolloutError, match="does not answer") as caught:
            sandbox.run("sleep 30", seconds=60)
        assert caught.value.where is Where.ENVIRONMENT
        running.join()


def test_nothing_is_left_of_a_server_that_is_interrupted_at_work() -> None:
    """While one sandbox runs a command, and another is waited for."""
    with serving("--kind", "local", "--at-once", "1") as (url, process):
        kind = provider(url)
        sandbox = kind.start("mine", None, None)
        folder = Path(sandbox.run("pwd", seconds=20).stdout.strip())
        with ThreadPoolExecutor(2) as asking:
            command, start = (
                asking.submit(sandbox.run, "touch here; sleep 300", seconds=600),
                asking.submit(kind.start, "late", None, None),
            )
            wait_until((folder / "here").exists, "the command")
            children = below(process.pid)
            process.send_signal(signal.SIGINT)
            process.wait(60)
            assert not folder.exists()
            wait_until(lambda: not any(map(running, children)), "the command's end")
            assert command.exception(60) or command.result().exit_code
            assert isinstance(start.exception(60), RolloutError)


def test_a_client_that_is_gone_leaves_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_server, "LOOK_SECONDS", 0.05)
    pool = Pool(Folders(), Limits(starting=1))
    with TestClient(application(pool, idle=0.7, at_once=4, admin_key=None)) as client:
        client.put("/sandboxes/left", json={})
        client.put("/sandboxes/long", json={})
        asked = {"number": "1", "command": "sleep 1.5", "seconds": 20}
        assert client.post("/sandboxes/long/commands", json=asked).json()["exit_code"] == 0  # longer than idle
        wait_until(lambda: client.get("/health").json() == {"sandboxes": 0}, "the sandboxes")
        assert client.post("/sandboxes/left/commands", json=asked).status_code == 404


def test_more_than_may_be_at_once_wait_and_are_then_served(url: str) -> None:
    kind = provider(url)
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.callback(kind.start(f"many-{number}", None, None).close)
        began = time.monotonic()
        threading.Timer(0.5, stack.close).start()
        kind.start("late", None, None).close()
        assert time.monotonic() - began >= 0.4


def test_who_waits_for_a_sandbox_keeps_nobody_from_his_work_or_its_end(url: str) -> None:
    """Of a server of 4, by more than all of its threads."""
    kind = provider(url)

    def episode(number: int) -> str:
        with contextlib.closing(kind.start(f"crowd-{number}", None, None)) as sandbox:
            return sandbox.run("echo 1", seconds=60).stdout

    with ThreadPoolExecutor(24) as episodes:
        assert list(episodes.map(episode, range(24), timeout=120)) == ["1\n"] * 24


def test_a_start_that_is_asked_for_again_while_it_fails_or_ends_leaves_nothing() -> None:
    told = Told(failing=1, error=UserError("no such image"))
    sandboxes = Sandboxes(Pool(told, Limits(starting=1)), idle=9)
    told.gate.clear()
    with ThreadPoolExecutor(3) as asking:
        twice = [asking.submit(sandboxes.start, "x", Wanted()) for _ in range(2)]
        wait_until(lambda: told.starting == 1, "the start")
        told.gate.set()
        assert {type(each.exception(60)) for each in twice} <= {UserError, GoneError, type(None)}
        told.gate.clear()
        sandboxes.end("x")
        ended = asking.submit(sandboxes.start, "y", Wanted())
        wait_until(lambda: told.starting == 1, "the start")
        sandboxes.end("y")
        told.gate.set()
        assert isinstance(ended.exception(60), GoneError)
    wait_until(lambda: not told.open, "the sandboxes' end")
    assert len(sandboxes) == 0


@needs_bwrap
def test_a_servers_folder_is_left_by_no_name_of_a_clients(tmp_path: Path) -> None:
    with served("--kind", "bwrap") as url, pytest.raises(UserError, match=r"\.\./escaped' is no folder of a sandbox"):
        provider(url).start("x", None, f"/{'../' * 20}{tmp_path}/../escaped")
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("address", ["http://[", "http://127.0.0.1:x", "http://127.0.0.1:9"])
def test_an_address_that_is_none_is_the_users_mistake(address: str) -> None:
    with pytest.raises(UserError, match="no server of sandboxes answers at"):
        provider(address)


def test_another_server_is_no_server_of_sandboxes() -> None:
    with http_server(lambda request: {"status": "ok"}) as url, pytest.raises(UserError, match="what does is another"):
        provider(url)
    with http_server(lambda request: {"sandboxes": 0}) as url, pytest.raises(RolloutError, match="no outcome"):
        provider(url).start("x", None, None).run("true", seconds=5)


def test_off_loopback_a_sandbox_needs_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(application(Pool(Folders()), idle=9, at_once=4, admin_key="k")) as client:
        assert client.get("/health").status_code == 200
        refused = client.put("/sandboxes/x", json={})
        assert refused.status_code == 401
        assert "MILES_LITE_ADMIN_KEY" in refused.json()["detail"]
        assert client.put("/sandboxes/x", json={}, headers={"Authorization": "Bearer k"}).status_code == 204


def test_a_wrong_key_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILES_LITE_ADMIN_KEY", "right")
    with served("--kind", "local", "--bind-host", "0.0.0.0") as url:
        monkeypatch.setenv("MILES_LITE_ADMIN_KEY", "wrong")
        with pytest.raises(UserError, match="401"):
            provider(url.replace("0.0.0.0", "127.0.0.1")).start("x", None, None)
        monkeypatch.setenv("MILES_LITE_ADMIN_KEY", "right")
        provider(url.replace("0.0.0.0", "127.0.0.1")).start("x", None, None).close()


def test_a_port_that_is_taken_is_said(url: str) -> None:
    argv = [sys.executable, "-m", "miles_lite", "sandboxes", "--kind", "local", "--port", url.rpartition(":")[2]]
    ended = subprocess.run(argv, env=environment("sandboxes"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "cannot listen on 127.0.0.1, port" in ended.stderr
