"""A supervised server whose worker process is killed: what was acknowledged is there, and retries are answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from miles_lite.errors import UserError
from miles_lite.session.client import SessionClient
from miles_lite.session.supervised_server import COMMAND, Supervisor
from tests.metric_names import undocumented
from tests.processes import running_after
from tests.session.engine import STOP, Engine, answer, scripted, spec
from tests.waiting import until

pytestmark = pytest.mark.e2e

ASK: list[Any] = [{"role": "user", "content": "go"}]


@dataclass
class Served:
    client: SessionClient
    engine: Engine
    supervisor: Supervisor

    def agent(self, session: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.client.base_url(session), api_key="-", max_retries=8)

    async def turns(self, session: str) -> list[dict[str, Any]]:
        return list((await self.client.describe(session))["turns"])


@contextlib.asynccontextmanager
async def _served(
    model: Path,
    run_dir: Path,
    script: Callable[[dict[str, Any]], Any],
    *,
    dies: str | None = None,
    silence: float = 30.0,
) -> AsyncIterator[Served]:
    async with scripted(script) as (engine, url):
        made = replace(spec(model, url, tito_allowed_append_roles=("tool", "user")), run_dir=str(run_dir))
        dying = (sys.executable, "-m", "tests.session.dying_worker", dies or "", str(run_dir / "died"))
        supervisor = Supervisor(made, command=dying if dies else COMMAND, silence=silence)
        try:
            async with SessionClient(await supervisor.start()) as client:
                yield Served(client, engine, supervisor)
        finally:
            await supervisor.stop()


async def _serves_again(served: Served, restarts: int = 1) -> None:
    await until(lambda: served.supervisor.restarts >= restarts, "the worker to be missed")
    await served.client.describe("nobody")


@pytest.mark.parametrize(("point", "generations"), [("before_commit", 2), ("after_commit", 1)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_killed_before_it_answered_is_bridged_by_the_clients_own_retry(
    tiny_model: Path, tmp_path: Path, point: str, generations: int, stream: bool
) -> None:
    """What was committed is not generated again, what was not is not there."""

    replies = iter([[40, STOP], [41, STOP], [42, STOP]])
    async with _served(tiny_model, tmp_path, lambda body: answer(next(replies)), dies=point) as served:
        session = await served.client.create()
        async with served.agent(session) as agent:
            if stream:
                text = await _streamed(agent)
            else:
                got = await agent.chat.completions.create(model="m", messages=ASK)
                text = str(got.choices[0].message.content)
            (turn,) = await served.turns(session)
            (sample,) = await served.client.collect(session)
            assert turn["completion_tokens"] == 2
            assert len(served.engine.requests) == generations
            assert sample.tokens[-2] == 39 + generations
            more = [*ASK, {"role": "assistant", "content": text}, *ASK]
            await agent.chat.completions.create(model="m", messages=more)
            assert [turn["parent"] for turn in await served.turns(session)] == [None, 0]
        assert served.supervisor.restarts == 1


async def _streamed(agent: openai.AsyncOpenAI) -> str:
    """A client that starts again when a stream breaks off, saying so as the official one does for plain requests."""
    for attempt in range(50):
        options: Any = {"extra_headers": {"X-Stainless-Retry-Count": str(attempt)}, "stream": True}
        try:
            text = ""
            async for event in await agent.chat.completions.create(model="m", messages=ASK, **options):
                text += event.choices[0].delta.content or ""
                if event.choices[0].finish_reason:
                    return text
        except (openai.APIError, aiohttp.ClientError, OSError):
            pass
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "httpx":
                raise
        await asyncio.sleep(0.2)
    raise AssertionError("the stream never ended")


async def test_an_answer_that_was_sent_and_never_read_is_given_again(tiny_model: Path, tmp_path: Path) -> None:
    async with _served(tiny_model, tmp_path, lambda body: answer([40, STOP]), dies="after_send") as served:
        session = await served.client.create()
        body = b'{"model":"m","messages":[{"role":"user","content":"go"}]}'
        path = f"/sessions/{session}/v1/chat/completions"
        with socket.create_connection(("127.0.0.1", int(served.client.url.rpartition(":")[2]))) as deaf:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            deaf.sendall(head.encode() + body)
            await _serves_again(served)
        headers = {"X-Stainless-Retry-Count": "1"}
        async with aiohttp.ClientSession() as http:
            for _ in range(2):
                async with http.post(served.client.url + path, data=body, headers=headers) as response:
                    assert response.status == 200
                    assert (await response.json())["usage"]["completion_tokens"] == 2
                assert len(served.engine.requests) == 1
                assert len(await served.turns(session)) == 1


async def test_while_the_worker_is_down_clients_are_told_to_come_back(tiny_model: Path, tmp_path: Path) -> None:
    async with _served(tiny_model, tmp_path, lambda body: answer([40, STOP])) as served:
        session = await served.client.create()
        seen: list[tuple[int, str | None, Any]] = []
        assert served.supervisor.worker_pid is not None
        os.kill(served.supervisor.worker_pid, signal.SIGKILL)
        down = time.monotonic()
        async with aiohttp.ClientSession() as http:
            while not seen or seen[-1][0] != 200:
                url = f"{served.client.url}/sessions/{session}/v1/messages/count_tokens"
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with http.post(url, json={"messages": ASK}) as response:
                        seen.append((response.status, response.headers.get("Retry-After"), await response.json()))
                assert time.monotonic() - down < 120
                await asyncio.sleep(0.02)
        refused = seen[:-1]
        assert refused
        assert {(status, after) for status, after, _ in refused} == {(503, "1")}
        assert refused[0][2]["type"] == "error", "in the route's own dialect"
        os.kill(served.supervisor.worker_pid, signal.SIGKILL)
        assert await served.client.collect(session) == [], "the rollout's own client waits for the worker"
        await served.client.delete(session)
        stats = await served.supervisor.stats()
        assert stats["worker_restarts"] == 2
        assert undocumented(f"session/{name}" for name in stats) == set()


async def test_a_worker_that_hangs_is_replaced_and_clients_go_on(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = iter([40, 41])
    async with _served(tiny_model, tmp_path, lambda body: answer([next(script), STOP]), silence=3.0) as served:
        session = await served.client.create()
        async with served.agent(session) as agent:
            got = await agent.chat.completions.create(model="m", messages=ASK)
            hung = served.supervisor.worker_pid
            assert hung is not None
            os.kill(hung, signal.SIGSTOP)
            await _serves_again(served)
            more = [*ASK, got.choices[0].message.model_dump(exclude_none=True), *ASK]
            await agent.chat.completions.create(model="m", messages=more)
        assert [turn["parent"] for turn in await served.turns(session)] == [None, 0]
        assert not psutil.pid_exists(hung)
    assert "hangs: waited 3 s for a sign of life from its event loop" in caplog.text


async def test_random_kills_lose_no_acknowledged_turn(tiny_model: Path, tmp_path: Path) -> None:
    """Agents talk on while their server is killed again and again."""

    numbers = iter(range(40, 500))

    async def think(body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.05)
        return answer([next(numbers), STOP])

    async def talk(served: Served, session: str, until: asyncio.Event) -> int:
        messages, turns = list(ASK), 0
        async with served.agent(session) as agent:
            while not until.is_set():
                got = await agent.chat.completions.create(model="m", messages=messages)
                turns += 1
                messages += [got.choices[0].message.model_dump(exclude_none=True), *ASK]
        return turns

    async with _served(tiny_model, tmp_path, think) as served:
        enough, chance = asyncio.Event(), random.Random(1)
        sessions = [await served.client.create() for _ in range(4)]
        talks = [asyncio.create_task(talk(served, session, enough)) for session in sessions]
        for restarts in range(1, 4):
            asked = len(served.engine.requests) + 8
            while len(served.engine.requests) < asked:
                await asyncio.sleep(chance.uniform(0.01, 0.1))
            assert served.supervisor.worker_pid is not None
            os.kill(served.supervisor.worker_pid, signal.SIGKILL)
            await _serves_again(served, restarts)
        enough.set()
        for session, turns in zip(sessions, await asyncio.gather(*talks), strict=True):
            found = await served.turns(session)
            samples = await served.client.collect(session)
            assert turns > 0
            assert [turn["parent"] for turn in found] == [None, *range(turns - 1)], "each turn once, in one line"
            assert [sample.trained_tokens for sample in samples] == [2 * turns]


async def test_no_worker_outlives_its_supervisor(tiny_model: Path, tmp_path: Path) -> None:
    """A supervisor that is killed takes its worker with it; one that is stopped leaves a free port."""
    code = (
        "import asyncio, pickle, sys\n"
        "from miles_lite.session.supervised_server import Supervisor\n"
        "async def main():\n"
        "    s = Supervisor(pickle.load(sys.stdin.buffer))\n"
        "    await s.start(); print(s.worker_pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    import pickle

    made = replace(spec(tiny_model), run_dir=str(tmp_path))
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write(pickle.dumps(made))
    worker = psutil.Process(int(await owner.stdout.readline()))
    owner.kill()
    await owner.wait()
    assert not running_after([worker])
    supervisor = Supervisor(made)
    url = await supervisor.start()
    pid = supervisor.worker_pid
    await supervisor.stop()
    assert pid is not None
    assert not psutil.pid_exists(pid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(url.rpartition(":")[2])))


async def test_a_worker_that_cannot_start_says_why(tiny_model: Path, tmp_path: Path) -> None:
    supervisor = Supervisor(replace(spec(tiny_model), model_path=str(tmp_path)))
    with pytest.raises(UserError, match="has no tokenizer"):
        await supervisor.start()
    broken = Supervisor(spec(tiny_model), command=(sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(UserError, match="exit code 3"):
        await broken.start()


async def test_the_command_serves_until_it_is_told_to_stop(tiny_model: Path, tmp_path: Path) -> None:
    command = "import sys; from miles_lite.cli import main; sys.exit(main())"

    async with scripted(lambda body: answer([40, STOP])) as (_, url):
        for turns in (1, 2):
            arguments = ("--hf-checkpoint", tiny_model, "--router-url", url, "--run-dir", tmp_path)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", command, "session", *map(str, arguments)),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            told = (await asyncio.wait_for(process.stdout.readline(), 120)).decode().split()
            async with openai.AsyncOpenAI(base_url=f"{told[1]}/sessions/mine/v1", api_key="-") as agent:
                await agent.chat.completions.create(model="m", messages=ASK)
            async with SessionClient(told[1]) as client:
                assert len((await client.describe("mine"))["turns"]) == turns
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0


SLOW = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{%- if m.content|length > 20000 %}
{%- for i in range(500) %}{% for j in range(40000) %}{% endfor %}{% endfor %}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


async def test_a_worker_that_is_busy_with_one_request_is_not_killed(tiny_model: Path, tmp_path: Path) -> None:
    """A template that takes longer for it than a worker may show no life; others are answered in the meantime."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text(SLOW)

    async with _served(model, tmp_path, lambda body: answer([5, STOP]), silence=1.0) as served:
        busy, other = served.agent(await served.client.create()), served.agent(await served.client.create())
        content = "word " * 5000
        slow = asyncio.create_task(
            busy.chat.completions.create(model="m", messages=[{"role": "user", "content": content}])
        )
        answered = 0
        while not slow.done():
            await other.chat.completions.create(model="m", messages=ASK)
            answered += 1
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await slow
        assert served.supervisor.restarts == 0
        assert answered > 3
        await busy.close()
        await other.close()
