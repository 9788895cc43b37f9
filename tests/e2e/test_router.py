"""`miles-lite serve` answers OpenAI chat until Ctrl-C, with a pair of engines or one, or the gateway; meanwhile its
router is killed in every way, and a session goes on."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from miles_lite.engine.disaggregation import missing
from tests.e2e.job import assert_nothing_left, ended, marked, start, wait_for
from tests.processes import command_of, running_after, tree_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
PAIR = ["--rollout-num-gpus", "2", "--prefill-num-servers", "1"]
ONE = ["--rollout-num-gpus", "1"]
NO_PAIR = missing() is not None
GATEWAY = ["--rollout-num-gpus", "1", "--router", "gateway"]


@pytest.mark.parametrize(
    ("flags", "roles", "victims"),
    [
        pytest.param(
            ONE if NO_PAIR else PAIR,
            ["regular"] if NO_PAIR else ["decode", "prefill"],
            ("miles_lite.router.server_main", "ray::RouterActor"),
            id="one" if NO_PAIR else "pair",
        ),
        pytest.param(
            GATEWAY,
            ["regular"],
            ("smg::router", "miles_lite.router.server_main", "ray::RouterActor"),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(importlib.util.find_spec("smg") is None, reason="smg is not installed"),
            ],
            id="gateway",
        ),
    ],
)
def test_a_session_goes_on_when_the_router_is_killed(
    flags: list[str],
    roles: list[str],
    victims: tuple[str, ...],
    tiny_model: Path,
    run_dir: Path,
    mark: str,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    common = ["--hf-checkpoint", str(tiny_model), "--run-dir", str(run_dir), "--rollout-max-context-len", "1024"]
    process = start(
        "serve", [*common, "--device", "cpu", "--engine-health-interval", "0.5", *flags], mark=mark, log=log
    )
    ready = wait_for(
        "the servers",
        lambda: re.search(r"^router +(\S+)\nsessions +(\S+)[^$]*^ready", log.read_text(), re.MULTILINE),
        timeout=300,
        process=process,
        log=log,
    )
    router, sessions = ready[1], ready[2]
    workers = known(router)
    assert sorted(one["worker_type"] for one in workers.values()) == roles
    session = httpx.post(f"{sessions}/sessions", json={"sampling": {"max_new_tokens": 8}}, timeout=30).json()
    base = f"{sessions}/sessions/{session['session_id']}/v1"
    chat = openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=120)
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    for victim in victims:
        messages = say(chat, messages)
        before = the_process(mark, victim)
        before.send_signal(signal.SIGKILL)
        assert not running_after([before])
        messages = say(chat, messages)
        assert the_process(mark, victim).pid != before.pid
        assert known(router).keys() == workers.keys()
        assert all(one["state"] == "ready" for one in known(router).values())
    last = [the_process(mark, victim) for victim in victims]
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, log) == 0
    assert not running_after(last)
    assert_nothing_left(mark)


def known(router: str) -> dict[str, dict]:
    """The router's workers by URL."""
    return {one["url"]: one for one in httpx.get(f"{router}/workers").json()["workers"]}


def say(chat: openai.OpenAI, messages: list[Any]) -> list[Any]:
    """One more turn of the conversation, as long as the session says."""
    reply = chat.chat.completions.create(model="any", messages=messages)
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 8
    said = reply.choices[0].message.model_dump(exclude_none=True)
    return [*messages, said, {"role": "user", "content": "and then?"}]


def the_process(mark: str, words: str) -> psutil.Process:
    """The one process of this run, or child of one, whose command line has these words: smg hides its environment."""
    ours = {process for one in marked(mark) for process in tree_of(one.pid)}
    (found,) = (one for one in ours if words in command_of(one))
    return found
