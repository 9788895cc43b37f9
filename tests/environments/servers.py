"""Environment servers on loopback, each the real package's own, with one game: guess a number of 1 to `top`.

python -m tests.environments.servers openenv|ors PORT
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
OPENENV = Path(os.environ.get("MILES_LITE_OPENENV", Path(sys.prefix, "openenv")), "bin", "python")
"""OpenEnv's servers run in an interpreter of their own (scripts/setup-environments.sh)."""
TOP, GUESSES = 9, int(os.environ.get("GUESSES", "3"))
ASKED = f"guess 1 to {TOP}"


class Guessing:
    """The number that a seed says; `guess` gives what is said, the reward, and whether it is over."""

    def __init__(self, seed: int) -> None:
        self.number, self.left = random.Random(seed).randint(1, TOP), GUESSES

    def guess(self, said: str) -> tuple[str, float, bool]:
        self.left -= 1
        if not said.strip().isdigit():
            return "no number", 0.0, True
        guess = int(said)
        if guess == self.number:
            return "right", 1.0, True
        return ("higher" if guess < self.number else "lower"), 0.0, self.left == 0


def openenv_app():
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    class Guess(Action):
        message: str

    class Seen(Observation):
        said: str

    class Game(Environment[Guess, Seen, State]):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, **_):
            self.game = Guessing(seed or 0)
            return Seen(said=ASKED)

        def step(self, action, timeout_s=None, **_):
            said, reward, done = self.game.guess(action.message)
            return Seen(said=said, reward=reward, done=done)

        @property
        def state(self):
            return State()

    return create_fastapi_app(Game, Guess, Seen, max_concurrent_envs=64)


def ors_app():
    from ors import Environment, Server, Split, TextBlock, ToolOutput, tool
    from pydantic import BaseModel

    class Guess(BaseModel):
        number: int

    class Game(Environment):  # type: ignore[misc, unused-ignore]
        def __init__(self, task_spec, secrets=None):
            super().__init__(task_spec, secrets or {})
            self.game = Guessing(int(task_spec["seed"]))

        @classmethod
        def list_splits(cls):  # type: ignore[override, unused-ignore]
            return [Split(name="train", type="train"), Split(name="test", type="test")]

        @classmethod
        def list_tasks(cls, split):
            return [{"seed": at + 1000 * (split == "test")} for at in range(200)]

        def get_prompt(self):
            return [TextBlock(text=ASKED)]

        @tool
        def guess(self, given: Guess) -> ToolOutput:
            """Guess it."""
            said, reward, done = self.game.guess(str(given.number))
            return ToolOutput(blocks=[TextBlock(text=said)], reward=reward, finished=done)

    Guess.__module__ = __name__
    Game.guess.__annotations__ = {"given": Guess, "return": ToolOutput}
    Game.__name__ = "guessing"
    return Server([Game]).app


@contextmanager
def serving(kind: str, where: Path) -> Iterator[str]:
    """The URL of a server in a process of its own, whose output is in `where`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with where.open("wb") as log:
        python = OPENENV if kind == "openenv" else sys.executable
        argv = [str(python), "-m", "tests.environments.servers", kind, str(port)]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, where.read_text()
            assert time.monotonic() < deadline, where.read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    import uvicorn

    kind, port = sys.argv[1:]
    uvicorn.run({"openenv": openenv_app, "ors": ors_app}[kind](), host="127.0.0.1", port=int(port), log_level="warning")
