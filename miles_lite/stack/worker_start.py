"""Starts a worker of Ray's in the environment that its actor is given.

    python worker_start.py --serialized-runtime-env-context={...} --language=PYTHON .../default_worker.py ARGUMENTS

stands in for Ray's own setup_worker.py, which imports Ray for that, and so takes half a CPU second before the worker
imports it once more; a run starts seven workers and more.
Invariant: whoever asks for more than variables with plain values gets Ray's own. This file stands alone: nothing of
miles_lite is imported.
"""

from __future__ import annotations

import json
import os
import sys

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_WORKER = "default_worker.py"


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


if __name__ == "__main__":
    words, variables = command(sys.argv[1:])
    os.execve(words[0], words, os.environ | variables)
