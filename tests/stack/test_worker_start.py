"""What starts Ray's workers does what Ray's own script does, without Ray."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.workers import default_worker
from ray.core.generated import common_pb2

from miles_lite.stack import worker_start

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


def test_the_script_runs_in_this_process_s_place(tmp_path: Path) -> None:
    worker = tmp_path / "default_worker.py"
    worker.write_text("import json, os, sys; print(json.dumps([os.getpid(), os.environ['A'], sys.argv[1:]]))")
    context = RuntimeEnvContext(env_vars={"A": "b c"}).serialize()
    told = [str(worker), "--x=1", f"--serialized-runtime-env-context={context}", "--language=PYTHON"]
    with subprocess.Popen([sys.executable, worker_start.__file__, *told], stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=30)
    assert json.loads(said) == [process.pid, "b c", ["--x=1"]]
