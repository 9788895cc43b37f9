"""A fork server without SGLang: what it forks shows, and when it is left aside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from miles_lite.engine.launch import environment
from miles_lite.engine.server_process import FORK_SERVER, ServerProcess
from miles_lite.engine.spec import EngineSpec
from miles_lite.process.fork_server import fork_server
from tests.processes import above, command_of, running, variables_of
from tests.waiting import wait_until

SLEEPS = [sys.executable, "-c", "import json, sys, time; print('json' in sys.modules, flush=True); time.sleep(600)"]
KEEPS = """
import os, sys, time
from pathlib import Path
from miles_lite.process.fork_server import fork_server
from miles_lite.engine.launch import environment
with fork_server(("json",), os.environ, Path(sys.argv[1])) as at:
    print(at, flush=True)
    time.sleep(600)
"""


def executed(server: ServerProcess) -> bool:
    """Whether its guard is a child of this process."""
    guard = psutil.Process(server.pid).parent()
    assert guard is not None
    return guard.ppid() == os.getpid()


async def test_what_is_forked_shows_its_own_command_environment_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with fork_server(("json",), os.environ, tmp_path / "log") as at:
        monkeypatch.chdir(tmp_path)
        env = {**os.environ, FORK_SERVER: at, "WHOSE": "mine ü", "LONG": "x" * 20_000}
        server = ServerProcess.launch(SLEEPS, env=env, log_path=tmp_path / "server")
        shown = psutil.Process(server.pid)
        wait_until(lambda: (tmp_path / "server").read_text() == "True\n", "it to speak")
        folder = variables_of(shown).pop("TMPDIR")
        assert variables_of(shown) == {**env, "TMPDIR": folder}
        assert Path(folder).parent == Path(os.environ.get("TMPDIR", "/tmp"))
        assert command_of(shown) == " ".join(SLEEPS)
        assert shown.cwd() == str(tmp_path)
        assert not executed(server)
        await server.stop()


@pytest.mark.parametrize("name", ["PYTHONPATH", "SGLANG_USE_CPU_ENGINE", "HF_HOME", "CUDA_VISIBLE_DEVICES"])
async def test_under_another_environment_for_its_imports_a_command_is_executed(tmp_path: Path, name: str):
    with fork_server(("json",), os.environ, tmp_path / "log") as at:
        env = {**os.environ, FORK_SERVER: at, name: str(tmp_path)}
        server = ServerProcess.launch(SLEEPS, env=env, log_path=tmp_path / "server")
        assert executed(server)
        await server.stop()


async def test_without_its_fork_server_a_command_is_executed(tmp_path: Path):
    with fork_server(("no_such_module",), os.environ, tmp_path / "log") as at:
        wait_until(lambda: "no_such_module" in (tmp_path / "log").read_text(), "the import to fail")
        server = ServerProcess.launch(SLEEPS, env={**os.environ, FORK_SERVER: at}, log_path=tmp_path / "server")
        assert executed(server)
        await server.stop()


async def test_a_fork_server_ends_and_what_it_has_forked_goes_on(tmp_path: Path):
    with fork_server(("json",), os.environ, tmp_path / "log") as at:
        server = ServerProcess.launch(SLEEPS, env={**os.environ, FORK_SERVER: at}, log_path=tmp_path / "server")
    assert not Path(at).parent.exists()
    assert psutil.pid_exists(server.pid)
    assert server.exit_code is None
    await server.stop()
    assert not psutil.pid_exists(server.pid)


def test_a_fork_server_ends_with_its_owner_however_that_ends(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", KEEPS, str(tmp_path / "log")], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().decode().strip()).parent
        (forking,) = psutil.Process(owner.pid).children()
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not folder.exists() and not running(forking), "the fork server to end")


@pytest.mark.e2e
async def test_the_one_of_engines_has_one_thread(tmp_path: Path):
    """Of a process with more, a fork has the locks that the others hold, and nobody to let them go."""
    code = "import sys, time; print('sglang.srt.models.qwen3' in sys.modules, flush=True); time.sleep(600)"
    spec = EngineSpec(index=0, model_path="", device="cpu", log_path="")
    set_in_passing = {"PYTHONBREAKPOINT": "ray.util.rpdb.set_trace", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    env = environment(spec, os.environ, profile=True) | set_in_passing  # and that of tests/conftest.py
    server = ServerProcess.launch([sys.executable, "-c", code], env=env, log_path=tmp_path / "server")
    wait_until(lambda: (tmp_path / "server").read_text() == "True\n", "it to speak")
    _, forks, *_ = above(psutil.Process(server.pid))
    assert "fork_server_main" in command_of(forks)
    assert forks.num_threads() == 1
    await server.stop()
