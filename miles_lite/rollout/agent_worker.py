"""AgentWorker: a long-lived Ray actor that runs users' agent functions, many at once, and collects their tokens.

Invariant: a rollout never raises. Whatever the agent, the reward or the session does becomes a `Rollout` with a
status, where and why it broke, and the samples that could be collected. Users' code runs in a loop of its own, so that
it cannot keep this actor from answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from miles_lite.config.options import Config
from miles_lite.config.yaml_files import plugin_args
from miles_lite.environments import single_turn
from miles_lite.errors import Where
from miles_lite.hooks import AgentMore, named
from miles_lite.plugins import contracts, field_args
from miles_lite.process import tracing
from miles_lite.process.addresses import actor_label
from miles_lite.process.json_types import JsonObject
from miles_lite.process.remote import Remote
from miles_lite.rollout.agent_calls import Ran, Running, Task
from miles_lite.rollout.agent_loop import AgentLoop, OutOfTimeError
from miles_lite.rollout.agent_output import bounded_output
from miles_lite.rollout.agent_report import MODEL_TIME, TOOL_TIME, agent_report, check_reward, check_rewards
from miles_lite.rollout.agent_sampling import Sampling, request_kwargs
from miles_lite.rollout.failures import failure_of
from miles_lite.rollout.given_environment import Given, load_environment
from miles_lite.rollout.judging import Judging
from miles_lite.rollout.kept import trajectory
from miles_lite.rollout.prompts import Prompt
from miles_lite.rollout.rewards.answer import Ask
from miles_lite.sample import Failure, Rollout, Sample, Spans, Status
from miles_lite.session.client import SessionClient, SessionError
from miles_lite.traces import atraj

COLLECT_ATTEMPTS = 3
LOOP_ATTEMPTS = 3
"""How often a rollout begins that other agents take the loop away from."""
JUDGE_SAMPLING: Sampling = {"temperature": 0.0, "max_new_tokens": 1024}
"""How our engines judge."""
SESSION_SECONDS = 60.0
"""How long a session server that is being replaced is waited for."""


class AgentWorker(Running):
    """Runs agents against sessions. `start` loads the user's code; `run` may be called concurrently, and is, by those
    who ask for several rollouts at once: see `agent_calls.Runs`."""

    def __init__(self, index: int, config: Config, admin_key: str | None = None) -> None:
        """`admin_key`: what opening a session takes; None: nothing."""
        super().__init__(self.run)
        self._index = index
        self._config = config
        self._admin_key = admin_key
        self._clients: dict[str, SessionClient] = {}
        self._exits = contextlib.AsyncExitStack()
        self._agents = AgentLoop()
        self._environment: Given | None = None
        self._judging: Judging | None = None

    def __repr__(self) -> str:
        return actor_label("AgentWorker", self._index)

    async def start(self) -> None:
        """Import the agent and reward functions. Raises UserError when they do not exist."""
        self._exits.enter_context(bounded_output())  # before a module is loaded that keeps stderr for its log
        self._exits.enter_context(tracing.sent_to(self._config.tracing.otlp_endpoint, f"agent-worker-{self._index}"))
        field_args.use(self._config, **plugin_args(self._config.files.custom_config_path))
        self._environment = load_environment(self._config)
        self._judging = Judging(self._config, self._environment.reward)
        self._exits.callback(self._judging.close)
        self._exits.callback(self._agents.close)

    async def run(self, task: Task) -> Ran:
        """Run one agent to its end, its time limit or its failure; its record, its samples and the turns of its
        session, in JSON, as far as they are wanted and there. Never raises."""
        for _ in range(LOOP_ATTEMPTS):
            with tracing.span("rollout", rollout=task.rollout_index, evaluation=task.evaluation) as note:
                rollout, samples, turns = await self._run(task)
                note(status=rollout.status.value, reward=rollout.reward, tokens=rollout.trained_tokens)
                note(group=task.group_index, failure=None if rollout.failure is None else str(rollout.failure))
            if rollout.failure is None or rollout.failure.where is not Where.CANCELLED:
                break
        return rollout, samples, turns

    async def _run(self, task: Task) -> tuple[Rollout, list[Sample], bytes]:
        samples: list[Sample] = []
        turns = b""
        rollout = Rollout(index=task.rollout_index, group_index=task.group_index, started_at=time.time())
        if (key := self._config.algorithm.opd_teacher_key) is not None:
            rollout.teacher = str(task.prompt.metadata.get(key, ""))
        try:
            client = await self._client(task.session_url)
            async with client.opened(task.sampling) as session_id:
                generated = await self._act(rollout, task, client.base_url(session_id), client.api_key(session_id))
                rollout.finished_at = time.time()
                samples = generated or await self._collect(client, session_id)
                rollout.samples = [sample.record() for sample in samples]
                failure, seconds = await client.outcome(session_id)
                _settle(rollout, failure)
                _account(rollout.spans, seconds)
                everything = self._config.logging.trajectory_dir
                if task.keep_transcript:
                    with contextlib.suppress(SessionError):  # a rollout is worth more than what is kept of it
                        turns = await client.turns_json(session_id)
                if everything is not None:
                    turns = turns or await client.turns_json(session_id)
                    await asyncio.to_thread(_write, Path(everything), rollout, task.prompt, turns, session_id)
        except Exception as error:  # noqa: BLE001 - a bad rollout is data, not a crash
            _fail(rollout, error, at=Where.SESSION)
        finally:
            rollout.finished_at = rollout.finished_at or time.time()
        return rollout, samples, turns

    async def judge(self, task: Task, rollouts: list[Rollout]) -> list[float | None] | Failure:
        """The rewards of rollouts of one prompt that are judged together, or where judging them broke. Never raises."""
        judging, limit, ask = self._judging, self._config.rollouts.rollout_timeout, self._asking(task)
        assert judging is not None
        try:
            rewards = await self._agents.run(lambda: judging.group(rollouts, task.prompt, ask=ask), timeout=limit)
            for reward in () if task.evaluation else rewards:
                check_reward(reward, self._config.algorithm)
            return rewards
        except OutOfTimeError:
            return Failure(Where.TIMEOUT, f"the group's rewards took over {limit:.0f} s (--rollout-timeout)")
        except Exception as error:  # noqa: BLE001 - users' code may raise anything
            return failure_of(error, at=Where.REWARD)

    async def steady(self) -> float | None:
        """Infinite once started: it has no process of its own that could be lost."""
        return None if self._environment is None else math.inf

    async def watch(self) -> None:
        """Never returns: who waits for it learns of this actor's death at once."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Close the connections to the session servers."""
        await self._exits.aclose()

    async def _client(self, url: str) -> SessionClient:
        if url not in self._clients:
            client = SessionClient(url, restart_seconds=SESSION_SECONDS, admin_key=self._admin_key)
            self._clients[url] = client
            await self._exits.enter_async_context(self._clients[url])
        return self._clients[url]

    async def _act(self, rollout: Rollout, task: Task, base_url: str, api_key: str) -> list[Sample]:
        """Run the agent function, then the reward; a failure or a time-out is noted and collecting goes on. Returns
        the samples of an agent that spoke to the engines itself."""
        environment, judging, limit = self._environment, self._judging, self._config.rollouts.rollout_timeout
        assert environment is not None
        assert judging is not None
        ask = self._asking(task)
        generated: list[Sample] = []
        more: AgentMore = {
            "sampling": task.sampling,
            "router_url": task.router_url,
            "evaluation": task.evaluation,
            "index": task.rollout_index,
            "group_index": task.group_index,
            "tools": task.prompt.tools,
        }
        metadata = {**task.prompt.metadata, "max_seq_len": self._config.rollouts.max_seq_len}
        at = Where.AGENT

        async def act() -> float | None:
            nonlocal at
            info = await environment.agent(
                base_url=base_url,
                api_key=api_key,
                prompt=task.prompt.input,
                request_kwargs=request_kwargs(task.sampling),
                metadata=metadata,
                label=task.prompt.label,
                **named(environment.agent, more),
            )
            rollout.metadata = dict(info or {})
            generated.extend(rollout.metadata.pop(contracts.GENERATED, ()))
            check_rewards(rollout.metadata, self._config.algorithm.advantage_estimator)
            reported = agent_report(rollout.metadata)
            rollout.spans.model, rollout.spans.tool = reported.get(MODEL_TIME), reported.get(TOOL_TIME)
            at, judged = Where.REWARD, time.monotonic()
            reward = await judging.reward(rollout, task.prompt, evaluation=task.evaluation, ask=ask)
            rollout.spans.reward = time.monotonic() - judged
            if not task.evaluation:
                check_reward(reward, self._config.algorithm)
            return reward

        try:
            rollout.reward = await self._agents.run(act, timeout=limit)
        except OutOfTimeError:
            rollout.fail(Where.TIMEOUT, f"the {at} function did not finish within {limit:.0f} s (--rollout-timeout)")
        except Exception as error:  # noqa: BLE001 - users' code may raise anything
            _fail(rollout, error, at=at)
        return generated

    def _asking(self, task: Task) -> Ask:
        """What reaches our engines through a session that nobody collects."""
        owner = asyncio.get_running_loop()

        async def ask(messages: list[dict[str, Any]]) -> str:
            client = await self._client(task.session_url)
            async with client.opened(JUDGE_SAMPLING) as session_id:
                url, key = client.base_url(session_id), client.api_key(session_id)
                said = await single_turn.run(url, messages, request_kwargs(JUDGE_SAMPLING), {}, api_key=key)
            return str(said["response"])

        async def elsewhere(messages: list[dict[str, Any]]) -> str:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(messages), owner))

        return elsewhere

    async def _collect(self, client: SessionClient, session_id: str) -> list[Sample]:
        for attempt in range(COLLECT_ATTEMPTS):
            try:
                return await client.collect(session_id, max_seq_len=self._config.rollouts.max_seq_len)
            except SessionError as error:
                if error.status < 500 or attempt == COLLECT_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


async def judge_together(
    worker: Remote[AgentWorker], task: Task, rollouts: Sequence[Rollout]
) -> list[float | None] | Failure:
    """What an AgentWorker says of rollouts of one prompt; their samples stay where they are."""
    records = [dataclasses.replace(rollout, stored=None, transcript=None) for rollout in rollouts]
    try:
        return await worker.call(AgentWorker.judge, task, records)
    except ray.exceptions.RayError as error:
        return Failure(Where.REWARD, f"the agent worker that judged died: {error}")


def _write(folder: Path, rollout: Rollout, prompt: Prompt, turns: bytes, session_id: str) -> None:
    """The rollout's trajectory file, of --trajectory-dir."""
    path = folder.expanduser().resolve() / f"{rollout.index:08d}-{session_id[:8]}{atraj.SUFFIX}"
    atraj.write(trajectory(turns, dataclasses.asdict(prompt), rollout, {}), path)


def _account(spans: Spans, seconds: JsonObject) -> None:
    """What a session saw of where the time went; what the agent itself reported stands."""
    spans.prefill, spans.tools = seconds.get("prefill"), dict(seconds.get("tools", {}))
    spans.model = seconds.get("model") if spans.model is None else spans.model
    spans.tool = sum(spans.tools.values()) if spans.tool is None and spans.tools else spans.tool


def _settle(rollout: Rollout, failure: Failure | None) -> None:
    """Derive the rollout's status from its samples, and from what its session knows to have let the agent down: a
    harness may raise an error of its own for that, or none."""
    if failure is not None and (rollout.failure is None or rollout.failure.where is Where.AGENT):
        rollout.fail(failure.where, failure.why)
    elif rollout.failure is None and not rollout.samples:
        rollout.fail(Where.AGENT, "its session has no samples: it asked the model nothing")
    elif rollout.failure is None:
        cut = any(sample.ends_cut for sample in rollout.samples)
        rollout.status = Status.TRUNCATED if cut else Status.COMPLETED


def _fail(rollout: Rollout, error: Exception, *, at: Where) -> None:
    failure = failure_of(error, at=at)
    rollout.fail(failure.where, failure.why)
