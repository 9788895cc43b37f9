"""The work on a task of a terminal: its sandbox, the model's commands in it, and what its tests say in the end."""

from __future__ import annotations

import json
import secrets
import subprocess
from functools import cache
from pathlib import Path, PurePosixPath

from miles_lite.environments.borrowed import Borrowed, run_in_thread
from miles_lite.environments.episodes import Begun, Step
from miles_lite.environments.session_chat import Message
from miles_lite.environments.terminal_task import TerminalTask
from miles_lite.process.json_types import JsonMapping
from miles_lite.sandboxes.files import packed, put
from miles_lite.sandboxes.lending import Pool
from miles_lite.sandboxes.local import WORKDIR
from miles_lite.sandboxes.runtime_answers import lasting
from miles_lite.sandboxes.sandbox import Sandbox
from miles_lite.sandboxes.shell import quoted

FOLDERS, CONTAINERS = ("bwrap",), ("docker", "podman")
BUILD_SECONDS = 1800.0
BROUGHT = ".miles-lite-brought"
"""Where what comes into a sandbox is until it is in its place."""
BASH: Message = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Run a bash command and see its output.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


class Work:
    """See `episodes.ToolEpisode` and `JudgedEpisode`."""

    def __init__(self, task: TerminalTask, pool: Pool, kind: str, image: str | None, seconds: float) -> None:
        self._task, self._kind, self._image, self._seconds = task, kind, image, seconds
        self._box = Borrowed(pool)
        self._sandbox: Sandbox | None = None

    async def begin(self) -> Begun:
        await run_in_thread(self._begin)
        return Begun([{"role": "user", "content": self._task.instruction}], [BASH])

    async def call(self, name: str, given: JsonMapping) -> Step:
        command = given.get("command")
        if name != "bash" or not isinstance(command, str) or "\0" in command:
            return Step('error: there is one tool, bash, and it takes {"command": TEXT}')
        assert self._sandbox is not None
        outcome = await run_in_thread(
            self._sandbox.run, command.encode(errors="replace").decode(), seconds=self._seconds
        )
        return Step(f"{outcome.stdout}{outcome.stderr}[exit code {outcome.exit_code}]")

    async def judge(self) -> float:
        return await run_in_thread(self._judge)

    async def close(self) -> None:
        await run_in_thread(self._box.close)

    def _begin(self) -> None:
        image = self._image or built(self._task, self._kind)
        self._sandbox = self._box.open(image, workdir=self._task.dockerfile.workdir(WORKDIR))
        for source, target in self._task.dockerfile.copies() if self._kind in FOLDERS else ():
            self._bring(source, target)

    def _bring(self, source: Path, target: str) -> None:
        """As COPY does: what is in a folder, or a file by its name or its new one."""
        assert self._sandbox is not None
        self._sandbox.unpack(packed(source.parent, PurePosixPath(source.name), name=BROUGHT))
        into = f"{quoted(target)}{'/' if source.is_dir() and not target.endswith('/') else ''}"
        from_ = f"{BROUGHT}/." if source.is_dir() else BROUGHT
        name = quoted(source.name)
        script = (
            f'into={into}; case $into in */|.|..) mkdir -p "$into" ;; *) mkdir -p "$(dirname "$into")" ;; esac\n'
            f'[ -d {from_} ] || [ ! -d "$into" ] || into=$into/{name}\ncp -r {from_} "$into" && rm -rf {BROUGHT}'
        )
        self._ran(script, f"{source} could not be copied to {target}")

    def _judge(self) -> float:
        task = self._task
        assert self._sandbox is not None
        brought = f"{BROUGHT}-{secrets.token_hex(16)}"  # a name that the model has put nothing under
        tests = task.folder / "tests"
        if tests.is_dir():
            self._sandbox.unpack(packed(task.folder, PurePosixPath("tests"), name=brought))
        put(self._sandbox, {f"{brought}/{task.script.name}": task.script.read_bytes()})
        script = (
            "rm -rf /tests /logs/verifier\n"
            f"mkdir -p /logs/verifier && mv {brought} /tests || {{ echo {brought} >&2; exit 1; }}\n"
        )
        given = {"TEST_DIR": "/tests", **task.environment}
        script += "".join(f"export {name}={quoted(value)}\n" for name, value in given.items())
        ended = self._sandbox.run(f"{script}bash /tests/{task.script.name}", seconds=task.seconds)
        if ended.stderr.endswith(f"{brought}\n"):
            raise RuntimeError(f"{task.folder}: no room for its tests: {ended.stderr[-500:]}")
        if task.script.parent == task.folder:
            return float(ended.exit_code == 0)
        logs = "/logs/verifier"
        said = self._sandbox.run(f"cat {logs}/reward.json 2>&- || cat {logs}/reward.txt", seconds=self._seconds)
        if said.exit_code:
            raise RuntimeError(f"{task.folder}: its tests left no reward: {(ended.stderr or ended.stdout)[-500:]}")
        return reward_of(said.stdout)

    def _ran(self, script: str, what: str) -> None:
        assert self._sandbox is not None
        outcome = self._sandbox.run(script, seconds=self._seconds)
        if outcome.exit_code:
            raise RuntimeError(f"{self._task.folder}: {what}: {outcome.stderr[-500:]}")


def reward_of(said: str) -> float:
    """Of reward.txt a number; of reward.json its `reward`, or the only number that it has. Raises ValueError."""
    told = json.loads(said)
    if isinstance(told, dict):
        told = told.get("reward", next(iter(told.values())) if len(told) == 1 else None)
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise ValueError(f"the tests' reward is no number: {said[:200]!r}")
    return float(told)


@cache
def built(task: TerminalTask, kind: str) -> str | None:
    """The image of a task's Dockerfile, built once. Raises SetupError, RolloutError."""
    if kind not in CONTAINERS:
        return None
    if subprocess.run([kind, "image", "inspect", task.tag], capture_output=True, check=False).returncode:
        argv = [kind, "build", "--tag", task.tag, str(task.files)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode:
            why = f"{task.folder}: its image could not be built: {done.stderr.strip()[-500:]}"
            raise lasting(why, f"Mend it until '{' '.join(argv)}' succeeds, or take the task out.")
    return task.tag
