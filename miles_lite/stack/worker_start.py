"""Starts a worker of Ray's in the environment that its actor is given.

    python worker_start.py --serialized-runtime-env-context={...} --language=PYTHON .../default_worker.py ARGUMENTS

stands in for Ray's own setup_worker.py, which imports Ray for that, and so takes half a CPU second before the worker
imports it once more; a run starts seven workers and more. One whose environment names a fork server
(process/fork_server_main.py) is forked there, and this process stands for it until it has ended: ended, it ends it.
Invariant: whoever asks for more than variables with plain values gets Ray's own. This file stands alone: nothing of
miles_lite is imported.
"""

from __future__ import annotations

import json
import os
import runpy
import sys

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_WORKER = "default_worker.py"
FORK_SERVER = "MILES_LITE_WORKER_FORK_SERVER"
"""An environment variable: the socket of the worker's fork server."""
_CLIENT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "process", "fork_client.py")
FORKED = """
import os, runpy, sys
import ray._raylet, setproctitle
ray._raylet.setproctitle = setproctitle.setproctitle  # its own looks for its area where it is not after a fork
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""What a fork server is to run: Ray's worker, whose file is the first argument."""


def command(given: list[str]) -> tuple[list[str], dict[str, str]]:
    """What is to run in this process's place, and the variables that it gets beside ours."""
    told = {word: each.removeprefix(word) for word in (_CONTEXT, _LANGUAGE) for each in given if each.startswith(word)}
    context = json.loads(told.get(_CONTEXT, "{}"))
    variables, python = context.pop("env_vars", {}), context.pop("py_executable", sys.executable)
    worker = next((each for each in given if os.path.basename(each) == _WORKER), None)
    unusual = any(context.values()) or any("$" in value for value in variables.values()) or not os.path.isfile(python)
    if worker is not None and (unusual or told.get(_LANGUAGE) != "PYTHON"):
        return [sys.executable, os.path.join(os.path.dirname(worker), "setup_worker.py"), *given], {}
    return [python, *(each for each in given if not each.startswith((_CONTEXT, _LANGUAGE)))], variables


def forked(at: str, words: list[str], environment: dict[str, str]) -> bool:
    """Have a fork server run them with this process's output, and wait until that has ended; False where it does not,
    and they are to be executed."""
    worker = next(number for number, word in enumerate(words) if os.path.basename(word) == _WORKER)
    ask = runpy.run_path(_CLIENT)["forked"]
    return bool(ask(at, [words[0], "-c", FORKED, *words[worker:]], environment))


if __name__ == "__main__":
    words, variables = command(sys.argv[1:])
    environment = os.environ | variables
    at = environment.get(FORK_SERVER)
    if not at or not forked(at, words, environment):
        os.execve(words[0], words, environment)
