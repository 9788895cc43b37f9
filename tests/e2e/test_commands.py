"""`miles-lite serve` and `miles-lite rollout` on real parts."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.job import Prepared, assert_nothing_left, run, start, values, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_serve_answers_openai_chat_until_ctrl_c(prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--hf-checkpoint", str(prepared.folder / "model"), "--run-dir", str(run_dir)]
    process = start("serve", flags, mark=mark, log=log)

    def sessions() -> str | None:
        text = log.read_text()
        found = re.search(r"^sessions +(\S+)", text, re.MULTILINE)
        return found[1] if found and "ready" in text else None

    url = wait_for("the servers", sessions, timeout=200, process=process, log=log)
    session = httpx.post(f"{url}/sessions", json={"sampling": {"max_new_tokens": 8}}, timeout=30).json()["session_id"]
    client = openai.OpenAI(base_url=f"{url}/sessions/{session}/v1", api_key="none", max_retries=0, timeout=60)
    answer = client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    assert_nothing_left(mark)


def test_rollout_generates_and_scores_without_training(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    flags = prepared.flags(run_dir, "--num-rollout", "1", "--none-reward-policy", "zero", "--log-passrate")
    output = run("rollout", flags, mark=mark, log=tmp_path / "log")
    assert "rollout/reward" in output
    assert "passrate/pass@4" in output
    assert len(values(run_dir, "rollout/reward")) == 1
    assert not (run_dir / "weights").exists()
    assert_nothing_left(mark)
