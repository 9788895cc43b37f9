"""`verifiers:tcp://HOST:PORT`: an environment server of verifiers v1 that runs, in its own Python (ZMQ, msgpack).

Its taskset, harness and scoring play; its harness asks the session as it would any OpenAI endpoint, so that the tokens
are the session's and the traces that it streams are read for rewards and metrics alone. --environment-args

    tasks    a file of its tasks' data, one `model_dump_json()` a line, or a folder of SPLIT.jsonl
    model    what it is told that the model is called (default "policy")
    timeout  seconds that an episode may take (default 1800); at_once: episodes at once in each agent worker
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from miles_lite.environments.environment_args import AT_ONCE, TASKS, TIMEOUT, Argument, refuse_others
from miles_lite.environments.episodes import answered, in_time
from miles_lite.environments.harness import Ended, Model, bounded
from miles_lite.environments.task_files import task_files
from miles_lite.environments.tasks import Task, Tasks
from miles_lite.environments.verifiers_call import HEALTH_SECONDS, Call
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

MODEL = Argument("model", str, "policy")
OWN = (TASKS, MODEL, TIMEOUT, AT_ONCE)
NO_KEY = "MILES_LITE_NO_KEY"
"""A variable that its process does not have: a session on loopback needs no key."""


def ended(reply: JsonMapping, traces: Mapping[str, JsonObject]) -> Ended:
    """What an episode earned: the rewards of its traces, weighted, of several agents their mean. Raises ValueError
    where it, or one of them, broke or was not scored."""
    head, played = reply.get("head") or {}, [traces.get(each["id"], {}) for each in reply.get("traces") or ()]
    if not head.get("ok") or not played:
        raise ValueError(_why(head, played))
    scored = [_scored(trace) for trace in played]
    values: dict[str, list[float]] = {}
    for _, numbers in scored:
        for name, value in numbers.items():
            values.setdefault(name, []).append(value)
    reward = sum(reward for reward, _ in scored) / len(scored)
    means = {name: sum(each) / len(each) for name, each in values.items()}
    return Ended(reward, str(played[-1].get("root_reply") or ""), means)


def _why(head: JsonMapping, played: Sequence[JsonMapping]) -> str:
    """The last of what went wrong."""
    errors = [*(head.get("errors") or ()), *(error for trace in played for error in trace.get("errors", ()))]
    return "; ".join(f"{each['type']}: {each['message']}" for each in errors[-2:]) or "it is not ok"


def _scored(trace: JsonObject) -> tuple[float, dict[str, float]]:
    """A trace's weighted reward, and its metrics and scores that are numbers. Raises ValueError where it has none."""
    given: Mapping[str, Json] = trace.get("rewards") or {}
    if not given or None in given.values():
        raise ValueError(f"it was not scored: its rewards are {given!r:.200}")
    numbers = {**(trace.get("metrics") or {}), **{name: each["score"] for name, each in given.items()}}
    finite = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
    return sum(each["score"] * each["weight"] for each in given.values()), finite


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError where no server answers."""
    import zmq

    refuse_others(args, OWN)
    files, model = task_files(args), MODEL.of(args)
    if not argument.startswith(("tcp://", "ipc://")) or files is None:
        raise UserError(
            f"--environment verifiers:{argument}: give its server's address, as verifiers:tcp://127.0.0.1:5000, and "
            "--environment-args '{\"tasks\": FILE}', the data of its tasks"
        )

    async def healthy() -> None:
        async with in_time(HEALTH_SECONDS, "its answer"):
            await Call(argument).ask("health", {})

    flaws = (TimeoutError, RuntimeError, ValueError, zmq.ZMQError)
    nobody = f"--environment verifiers:{argument}: no environment server answers there"
    with user_error(nobody, *flaws):
        answered(healthy())

    async def play(task: Task, asked: Model) -> Ended:
        client = {"type": "eval", "base_url": asked.base_url, "api_key_var": NO_KEY}
        call = Call(argument)
        request = {"task_data": files.row(task), "client": client, "model": model, "sampling": {}}
        return ended(await call.ask("run", request), call.traces)

    return bounded(play, args, tasks=Tasks("verifiers", files.size, seed))
