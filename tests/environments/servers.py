"""Environment servers on loopback, each the real package's own, with one game: guess a number of 1 to `top`.

NeMo-Gym's is one of its own resources servers, mcqa.

python -m tests.environments.servers openenv|ors|nemo-gym|verifiers PORT
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

ROOT = Path(__file__).parents[2]
OPENENV = Path(os.environ.get("MILES_LITE_OPENENV", Path(sys.prefix, "openenv")), "bin", "python")
"""OpenEnv's servers run in an interpreter of their own (scripts/setup-environments.sh)."""
NEMO_GYM = Path(os.environ.get("MILES_LITE_NEMO_GYM", Path(sys.prefix, "nemo-gym")), "bin", "python")
VERIFIERS = Path(os.environ.get("MILES_LITE_VERIFIERS", Path(sys.prefix, "verifiers")), "bin", "python")
PYTHONS = {"openenv": OPENENV, "nemo-gym": NEMO_GYM, "verifiers": VERIFIERS}
TOP, GUESSES = int(os.environ.get("TOP", "9")), int(os.environ.get("GUESSES", "3"))
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


def nemo_gym_app():
    """An agent server that asks the policy its caller names, once, and has mcqa's resources server judge."""
    import aiohttp
    from nemo_gym.base_responses_api_agent import BaseResponsesAPIAgentConfig, SimpleResponsesAPIAgent
    from nemo_gym.config_types import BaseServerConfig
    from nemo_gym.openai_utils import NeMoGymResponse
    from nemo_gym.server_utils import ServerClient
    from omegaconf import DictConfig
    from resources_servers.mcqa.app import (
        MCQAResourcesServer,
        MCQAResourcesServerConfig,
        MCQARunRequest,
        MCQAVerifyRequest,
        MCQAVerifyResponse,
    )

    where = {"host": "127.0.0.1", "port": 1, "entrypoint": "", "name": "asks"}
    nobody = ServerClient(
        head_server_config=BaseServerConfig(host="127.0.0.1", port=1), global_config_dict=DictConfig({})
    )
    mcqa = MCQAResourcesServer(config=MCQAResourcesServerConfig(**where), server_client=nobody)

    class Request(MCQARunRequest):
        policy_base_url: str | None = None
        policy_api_key: str | None = None
        lost: bool = False

    class Agent(SimpleResponsesAPIAgent):
        async def responses(self, body: dict[str, object]) -> NeMoGymResponse:
            raise NotImplementedError

        async def run(self, body: Request) -> MCQAVerifyResponse:
            asked = body.responses_create_params.model_dump(exclude_unset=True, mode="json") | {"model": "policy"}
            headers = {"Authorization": f"Bearer {body.policy_api_key}"}
            async with (
                aiohttp.ClientSession(headers=headers, raise_for_status=True) as client,
                client.post(f"{body.policy_base_url}/responses", json=asked) as answer,
            ):
                response = NeMoGymResponse.model_validate(await answer.json())
            request = MCQAVerifyRequest.model_validate(body.model_dump() | {"response": response.model_dump()})
            judged = await mcqa.verify(request)
            if body.lost:
                judged.mask_sample, judged.failure_reason = True, "the judge was lost"
            return judged

    # A server finds its request's type by name, and this file's are local.
    Agent.run.__annotations__ = {"body": Request, "return": MCQAVerifyResponse}
    Agent.responses.__annotations__ = {"body": dict, "return": NeMoGymResponse}
    return Agent(config=BaseResponsesAPIAgentConfig(**where), server_client=nobody).setup_webserver()


def serve_verifiers(port):
    """The package's own server, with the taskset and the harness of guessing_taskset.py."""
    sys.path.insert(0, str(Path(__file__).parent))
    from verifiers.v1.serve import serve_env
    from verifiers.v1.utils.loaders import resolve_env_config

    agent = {"harness": {"id": "guessing_taskset"}, "runtime": {"type": "subprocess"}}
    config = resolve_env_config({"taskset": {"id": "guessing_taskset"}, "agent": agent})
    serve_env(max_workers=1, elastic=False, address=f"tcp://127.0.0.1:{port}", config=config)


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(kind: str, where: Path, *, top: int = TOP) -> Iterator[str]:
    """The URL of a server in a process of its own, whose output is in `where`."""
    from tests.ports import free_port  # late: the server's interpreter may not have what the product imports

    port = free_port()
    with where.open("wb") as log:
        argv = [str(PYTHONS.get(kind, sys.executable)), "-m", "tests.environments.servers", kind, str(port)]
        process = subprocess.Popen(argv, cwd=ROOT, env=os.environ | {"TOP": str(top)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, where.read_text()
            assert time.monotonic() < deadline, where.read_text()
            if answers(port):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    import uvicorn

    kind, port = sys.argv[1:]
    if kind == "verifiers":
        serve_verifiers(int(port))
        sys.exit()
    apps = {"openenv": openenv_app, "ors": ors_app, "nemo-gym": nemo_gym_app}
    uvicorn.run(apps[kind](), host="127.0.0.1", port=int(port), log_level="warning")
