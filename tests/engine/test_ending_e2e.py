"""How an engine actor's start fails, and how it ends, on real SGLang; the last to use the engine of this room."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import psutil
import pytest
import ray

from miles_lite.config.engines import Engines
from miles_lite.engine.actor import EngineActor
from miles_lite.errors import UserError
from tests.engine.conftest import Running, remote
from tests.processes import called, command_of, running_after, tree_of, words_of
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def guarded(log: Path) -> list[psutil.Process]:
    """The guard of the server that writes this log, a child of its owner or not, and all below it."""
    for one in called(str(log)):
        if any(word.endswith("server_guard.py") for word in words_of(one)):
            return tree_of(one.pid)
    return []


def test_a_server_that_dies_at_start_shows_its_last_lines(running: Running, tmp_path: Path):
    spec = dataclasses.replace(
        running.spec,
        index=1,
        log_path=str(tmp_path / "engine-1.log"),
        engines=Engines(sglang_args={"dtype": "float33"}),
    )
    engine = remote(EngineActor).remote(spec)
    with pytest.raises(UserError, match="invalid choice: 'float33'"):
        ray.get(engine.start.remote(), timeout=120)
    assert not ray.get(engine.alive.remote())


@pytest.mark.slow
def test_a_scheduler_that_is_killed_while_it_starts_ends_the_start(running: Running, tmp_path: Path):
    spec = dataclasses.replace(running.spec, index=1, router_urls=(), log_path=str(tmp_path / "log"))
    engine = remote(EngineActor).remote(spec)
    starting = engine.start.remote()

    def scheduler() -> psutil.Process | None:
        found = (one for one in guarded(tmp_path / "log") if "sglang::scheduler" in command_of(one))
        return next(found, None)

    wait_until(scheduler, "the scheduler to be forked", seconds=120)
    processes = guarded(tmp_path / "log")
    victim = scheduler()
    assert victim is not None
    victim.kill()
    with pytest.raises(UserError, match=r"(?s)Last lines of .*scheduler died during initialization"):
        ray.get(starting, timeout=60)
    assert not running_after(processes)


async def test_a_port_in_use_is_refused_at_once(running: Running, tmp_path: Path):
    port = int(running.info.url.rsplit(":", 1)[1])
    spec = dataclasses.replace(
        running.spec, log_path=str(tmp_path / "log"), engines=Engines(sglang_args={"port": str(port)})
    )
    with pytest.raises(UserError, match=f"--sglang-port {port}: cannot listen"):
        await EngineActor(spec).start()


@pytest.mark.parametrize("when", ["loading", pytest.param("serving", marks=pytest.mark.slow)])
def test_kill_9_of_the_actor_leaves_no_process(running: Running, tmp_path: Path, when):
    log = tmp_path / "log"
    spec = dataclasses.replace(running.spec, index=1, router_urls=(), log_path=str(log))
    engine = remote(EngineActor).remote(spec)
    starting = engine.start.remote()
    pid = ray.get(engine.__ray_call__.remote(lambda _: os.getpid()))
    if when == "serving":
        ray.get(starting, timeout=300)
    else:
        wait_until(
            lambda: log.exists() and "Load weight" in log.read_text(), "the scheduler to load weights", seconds=300
        )
    processes = guarded(log)
    assert len(processes) >= 4
    os.kill(pid, signal.SIGKILL)
    assert not running_after(processes)


def test_stop_ends_every_process_and_deregisters(running: Running):
    processes = tree_of(running.info.pid)
    assert len(processes) >= 3
    ray.get(running.engine.stop.remote(), timeout=30)
    assert not running_after(processes)
    assert ray.get(running.router.workers.remote()) == []
    ray.get(running.engine.stop.remote(), timeout=30)
