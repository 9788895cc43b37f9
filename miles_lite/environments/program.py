"""`program:COMMAND`: a program of yours plays each task, as it would with any provider's model.

It runs in bash, in a folder of its own with `task.json`: the task's `split`, `place`, `seed`, and `row` of a file. The
session is OPENAI_BASE_URL and OPENAI_API_KEY (and ANTHROPIC_..., GOOGLE_GEMINI_BASE_URL with GEMINI_API_KEY). What it
leaves in reward.txt, a number, or reward.json, `{"reward": 1.0}`, it earned. --environment-args

    tasks    a file of JSONL, or a folder of SPLIT.jsonl (default: none; then `size` tasks, which are their seeds)
    name     what metrics call it (default "program")
    timeout  seconds that it may take (default 1800); at_once: programs at once in each agent worker (default 16)
"""

from __future__ import annotations

import json
import subprocess

from miles_lite.environments.borrowed import Borrowed, run_in_thread
from miles_lite.environments.environment_args import AT_ONCE, SIZE, TASKS, TIMEOUT, Argument, refuse_others
from miles_lite.environments.harness import Ended, Model, bounded
from miles_lite.environments.task_files import task_files
from miles_lite.environments.tasks import Task, Tasks
from miles_lite.environments.terminal_work import reward_of
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping
from miles_lite.sandboxes import pool
from miles_lite.sandboxes.files import put
from miles_lite.sandboxes.lending import Limits
from miles_lite.sandboxes.shell import quoted

NAME, PROGRAMS = Argument("name", str, "program"), AT_ONCE.by_default(16)
OWN = (TASKS, NAME, TIMEOUT, PROGRAMS, SIZE)
READ_SECONDS = 30.0


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`."""
    refuse_others(args, OWN)
    if not argument.strip():
        raise UserError("--environment program: give its command, as 'program:python3 /home/me/agent.py'")
    _check(argument)
    files, size, seconds = task_files(args), SIZE.of(args), TIMEOUT.of(args)
    boxes = pool("local", Limits(at_once=PROGRAMS.of(args)))

    def played(box: Borrowed, task: Task, model: Model) -> Ended:
        sandbox = box.open()
        told = {"split": task.split, "place": task.place, "seed": task.seed, "row": files and files.row(task)}
        put(sandbox, {"task.json": json.dumps(told).encode()})
        variables = "".join(f"export {name}={quoted(value)}\n" for name, value in model.variables.items())
        ended = sandbox.run(variables + argument, seconds=seconds)
        left = sandbox.run("cat reward.json 2>&- || cat reward.txt", seconds=READ_SECONDS)
        if ended.exit_code or left.exit_code:
            said = (ended.stderr or ended.stdout)[-500:]
            raise RuntimeError(f"exit code {ended.exit_code}, {'no reward' if left.exit_code else 'a reward'}: {said}")
        return Ended(reward_of(left.stdout), ended.stdout)

    async def play(task: Task, model: Model) -> Ended:
        box = Borrowed(boxes)
        try:
            return await run_in_thread(played, box, task, model)
        finally:
            await run_in_thread(box.close)

    tasks = Tasks(NAME.of(args), files.size if files else lambda split: size, seed)
    return bounded(play, args, tasks=tasks, at_once=PROGRAMS)


def _check(command: str) -> None:
    """Raises UserError for what bash cannot read."""
    with user_error("--environment program: needs bash", OSError):
        read = subprocess.run(
            ["bash", "-n", "-c", command], capture_output=True, text=True, timeout=READ_SECONDS, check=False
        )
    if read.returncode:
        raise UserError(f"--environment program: bash cannot read the command: {' '.join(read.stderr.split())}")
