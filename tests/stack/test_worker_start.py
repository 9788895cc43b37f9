"""What starts Ray's workers does what Ray's own script does, without Ray."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.workers import default_worker
from ray.core.generated import common_pb2

from miles_lite.process.fork_server import fork_server
from miles_lite.stack import worker_start
from tests.processes import running, variables_of
from tests.waiting import wait_until

WORKER = str(default_worker.__file__)
PYTHON = vars(common_pb2)["Language"].Value("PYTHON")
ARGUMENTS = ["-s", WORKER, "--node-ip-address=127.0.0.1", "--webui=", "--name=it's two words"]


def given(context: dict[str, Any], *, language: str = "PYTHON") -> list[str]:
    told = RuntimeEnvContext(**context).serialize()
    return [*ARGUMENTS, f"--serialized-runtime-env-context={told}", f"--language={language}"]


class Replaced(Exception):
    """This process would now be another program."""


@pytest.mark.parametrize("variables", [{}, {"A": "1", "TWO": "a 'b\nc"}], ids=["none", "two"])
def test_plain_variables_are_set_as_ray_sets_them(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def replace(file: str, args: list[str]) -> None:
        ran.append(args)
        raise Replaced

    monkeypatch.setattr(os, "execvp", replace)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = dict(os.environ)
    with pytest.raises(Replaced):
        RuntimeEnvContext(env_vars=variables).exec_worker(list(ARGUMENTS), PYTHON)
    (words,) = ran
    assert words[:2] == ["bash", "-c"]
    command, set_ = worker_start.command(given({"env_vars": variables}))
    assert ["exec", *command] == shlex.split(words[2])
    assert before | set_ == os.environ


@pytest.mark.parametrize(
    ("context", "language"),
    [
        ({"env_vars": {"PATH": "/opt/bin:${PATH}"}}, "PYTHON"),
        ({"command_prefix": ["nice"]}, "PYTHON"),
        ({"py_executable": "uv run python"}, "PYTHON"),
        ({"override_worker_entrypoint": "other.py"}, "PYTHON"),
        ({}, "CPP"),
    ],
    ids=str,
)
def test_more_than_that_is_left_to_rays_own(context: dict[str, Any], language: str) -> None:
    own = Path(WORKER).with_name("setup_worker.py")
    assert own.is_file()
    words = given(context, language=language)
    assert worker_start.command(words) == ([sys.executable, str(own), *words], {})


def test_the_script_runs_in_this_process_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker_start.FORK_SERVER, os.devnull)
    worker = tmp_path / "default_worker.py"
    worker.write_text("import json, os, sys; print(json.dumps([os.getpid(), os.environ['A'], sys.argv[1:]]))")
    context = RuntimeEnvContext(env_vars={"A": "b c"}).serialize()
    told = [str(worker), "--x=1", f"--serialized-runtime-env-context={context}", "--language=PYTHON"]
    with subprocess.Popen([sys.executable, worker_start.__file__, *told], stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=30)
    assert json.loads(said) == [process.pid, "b c", ["--x=1"]]


TELLS = """
import json, os, sys, time
told = [os.getpid(), os.environ["A"], sys.argv, sys.path[0], __name__, "fractions" in sys.modules]
print(json.dumps(told), flush=True)
if "--stay" in sys.argv:
    time.sleep(600)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fork_server(("fractions",), os.environ, tmp_path_factory.mktemp("forks") / "log") as at:
        yield at


@contextmanager
def standing(tmp_path: Path, *arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """The process that Ray starts for a worker, and what that said."""
    worker = tmp_path / "default_worker.py"
    worker.write_text(TELLS)
    context = RuntimeEnvContext(env_vars={"A": "b c", **variables}).serialize()
    told = [*("-s", str(worker)), *arguments, f"--serialized-runtime-env-context={context}", "--language=PYTHON"]
    command = [sys.executable, worker_start.__file__, *told]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_a_worker_is_forked_where_its_environment_names_a_fork_server(forks: str, tmp_path: Path) -> None:
    with standing(tmp_path, "--x=1", **{worker_start.FORK_SERVER: forks}) as (process, (pid, *told)):
        worker = str(tmp_path / "default_worker.py")
        assert told == ["b c", [worker, "--x=1"], str(tmp_path), "__main__", True]
        assert pid != process.pid
        assert process.wait(30) == 0  # when the worker has ended


@pytest.mark.parametrize("whose", ["worker", "process that stands for it"])
def test_neither_outlives_the_other(whose: str, forks: str, tmp_path: Path) -> None:
    with standing(tmp_path, "--stay", **{worker_start.FORK_SERVER: forks}) as (process, (pid, *_)):
        worker = psutil.Process(pid)
        assert variables_of(worker)["A"] == "b c"
        os.kill(pid if whose == "worker" else process.pid, signal.SIGKILL)
        process.wait(30)
        wait_until(lambda: not running(worker), "the worker to end")


@pytest.mark.parametrize("variables", [{}, {"HF_HOME": "/nowhere"}], ids=["no server", "another environment"])
def test_elsewhere_it_is_executed(variables: dict[str, str], forks: str, tmp_path: Path) -> None:
    at = forks if variables else str(tmp_path / "nobody")
    with standing(tmp_path, **{worker_start.FORK_SERVER: at}, **variables) as (process, (pid, *_, forked)):
        assert (pid, forked) == (process.pid, False)
        assert process.wait(30) == 3
