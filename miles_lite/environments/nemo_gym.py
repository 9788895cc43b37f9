"""`nemo-gym:URL`: an agent server of NeMo-Gym that runs, in its own Python: `POST /run` plays a task to its end.

The server is one that asks the policy where its caller says (`policy_base_url` of its request, since 0.6), as
`mini_swe_agent_2` does; another would play with the model of its own config, and is refused. --environment-args

    tasks    a file of the rows that its resources server takes (`responses_create_params`, ...), or a folder of
             SPLIT.jsonl
    timeout  seconds that a task may take (default 1800); at_once: tasks at once in each agent worker (default: any)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import aiohttp

from miles_lite.environments.environment_args import AT_ONCE, TASKS, TIMEOUT, refuse_others
from miles_lite.environments.harness import Ended, Model, bounded
from miles_lite.environments.server_page import PAGE_SECONDS, page, within
from miles_lite.environments.task_files import task_files
from miles_lite.environments.tasks import Task, Tasks
from miles_lite.errors import UserError
from miles_lite.hooks import Environment
from miles_lite.process.json_types import Json, JsonMapping

OWN = (TASKS, TIMEOUT, AT_ONCE)
POLICY = "policy_base_url"


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`. Raises UserError where no agent server answers that takes a policy."""
    refuse_others(args, OWN)
    url, files = argument.rstrip("/"), task_files(args)
    if not url.startswith(("http://", "https://")) or files is None:
        raise UserError(
            f"--environment nemo-gym:{argument}: give its agent server's URL, as nemo-gym:http://127.0.0.1:8000, and "
            "--environment-args '{\"tasks\": FILE}', the rows that it is to play"
        )
    _check(url, f"--environment nemo-gym:{argument}")

    async def play(task: Task, model: Model) -> Ended:
        body = {**files.row(task), POLICY: model.base_url, "policy_api_key": model.api_key}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=PAGE_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as client, client.post(f"{url}/run", json=body) as answer:
            said = await answer.text(errors="replace")
            if answer.status != 200:
                raise RuntimeError(f"{url}/run answered {answer.status}: {said[:500]}")
            return ended(await answer.json())

    return bounded(play, args, tasks=Tasks("nemo_gym", files.size, seed))


def ended(said: Json) -> Ended:
    """Of a BaseVerifyResponse. Raises ValueError for a reward that the server itself takes for no measurement: it masks
    the sample, or has no turn of a model to show."""
    if not isinstance(said, Mapping) or "reward" not in said:
        raise ValueError(f"/run answered without a reward: {said!r:.200}")
    output = (said.get("response") or {}).get("output") or []
    if said.get("mask_sample") or not output:
        why = [said.get("failure_kind"), said.get("failure_reason"), (said.get("metadata") or {}).get("error")]
        raise ValueError(f"/run did not measure it: {'; '.join(str(each) for each in why if each) or 'no output'}")
    return Ended(said["reward"], _answer(output), {"failed": float(bool(said.get("failure_kind")))})


def _answer(output: Sequence[JsonMapping]) -> str:
    """The last text that the model wrote."""
    parts = [part for item in output if item.get("type") == "message" for part in item.get("content") or ()]
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return texts[-1] if texts else ""


def _check(url: str, flag: str) -> None:
    """Raises UserError unless the server's own description has a /run that takes the policy's address."""
    told = page(f"{url}/openapi.json", f"{flag}: no server of NeMo-Gym answers there")
    if "/run" not in within(told, "paths"):
        raise UserError(f"{flag}: it has no /run: give the URL of an agent server")
    body = within(told, "paths", "/run", "post", "requestBody", "content", "application/json", "schema")
    name = str(body.get("$ref", "")).rpartition("/")[2]
    if POLICY not in within(told, "components", "schemas", name, "properties"):
        raise UserError(
            f"{flag}: its /run takes no {POLICY}, so that its model calls would not come to us: take an agent that has "
            "it, as mini_swe_agent_2"
        )
