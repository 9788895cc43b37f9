"""`harbor:FOLDER`: tasks of a terminal in Harbor's or Terminal-Bench's format, each in a sandbox of its own.

The model has one tool, `bash`; when it calls none any more, or its turns are over, the task's tests are brought in and
say what it earned: /logs/verifier/reward.txt or reward.json, or for Terminal-Bench whether they pass.

--environment-args

    sandbox          docker (default), podman, bwrap, or the URL of a machine that serves them; a folder follows what of
                     a Dockerfile a folder can
    image            of tasks that neither name one nor have a Dockerfile
    command_timeout  seconds that a command may take (default 60); max_turns as of gem (default 64)
    at_once          sandboxes at once in each agent worker (default 16)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from miles_lite.config.environments import TRAIN
from miles_lite.environments.environment_args import AT_ONCE, MAX_TURNS, Argument, refuse_others, seconds
from miles_lite.environments.episodes import TOTALS, ToolLoop
from miles_lite.environments.tasks import Task, Tasks
from miles_lite.environments.terminal_task import TerminalTask, tasks_of
from miles_lite.environments.terminal_work import CONTAINERS, FOLDERS, Work
from miles_lite.errors import UserError
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping
from miles_lite.sandboxes import pool
from miles_lite.sandboxes.lending import Limits

SANDBOX, COMMAND_TIMEOUT = Argument("sandbox", str, "docker"), seconds("command_timeout", 60.0)
IMAGE: Argument[str | None] = Argument("image", str, None)
TURNS, SANDBOXES = MAX_TURNS.by_default(64), AT_ONCE.by_default(16)
OWN = (SANDBOX, IMAGE, COMMAND_TIMEOUT, TURNS, SANDBOXES)


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError for what is no task, or needs more than the sandbox is."""
    refuse_others(args, OWN)
    kind, image = SANDBOX.of(args), IMAGE.of(args)
    served = kind.startswith(("http://", "https://"))
    if not served and kind not in FOLDERS + CONTAINERS:
        raise UserError(f"--environment-args, sandbox: {kind!r}: there are docker, podman, bwrap, and a server's URL")
    folder = Path(argument).expanduser()

    @cache
    def tasks(split: str) -> list[TerminalTask]:
        inner = folder / split
        if not inner.is_dir() and split != TRAIN:
            raise UserError(f"--environment harbor:{argument}: no split {split}: there is no {inner}")
        found = tasks_of(inner if inner.is_dir() else folder)
        for each in found:
            each.dockerfile.workdir("/")
            if kind in FOLDERS:
                each.dockerfile.copies()
            elif not (each.image or image or (kind in CONTAINERS and each.dockerfile.instructions())):
                raise UserError(f"{each.folder}: it names no image, and --environment-args have none")
        return found

    tasks(TRAIN)
    boxes = pool(kind, Limits(at_once=SANDBOXES.of(args)))
    patience = COMMAND_TIMEOUT.of(args)

    def begin(task: Task) -> Work:
        chosen = tasks(task.split)[task.place]
        given = None if chosen.dockerfile.instructions() else image
        return Work(chosen, boxes, kind, chosen.image or given, patience)

    return ToolLoop(
        tasks=Tasks("harbor", lambda split: len(tasks(split)), seed),
        max_turns=TURNS.of(args),
        total=TOTALS["last"],
        begin=begin,
    )
