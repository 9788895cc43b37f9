"""The agent command on real parts: an untrained model behind SGLang, tools that run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.agent.prompt_cache import PAGE
from miles_lite.model_folder import fingerprint
from miles_lite.traces import atraj
from tests.e2e.job import ROOT, assert_nothing_left, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

LOADED = "loaded system-prompt cache"
ECHO = {
    "name": "echo",
    "description": "Print text",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "_exec": 'printf %s "$text"',
}


def launch(model: Path, tmp_path: Path, mark: str, *flags: str) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps({"tools": [ECHO]}))
    given = ["--single", "Use the echo tool", "--max-tokens", "30", "--max-steps", "1", "--tools", str(tools), *flags]
    argv = [sys.executable, "-m", "miles_lite", "agent", str(model), *given, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(argv, env=environment(mark), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    assert_nothing_left(mark)
    return done


def test_gibberish_of_an_untrained_model_is_taken_as_the_answer_and_the_loop_ends(
    tiny_model: Path, tmp_path: Path, mark: str
) -> None:
    transcript, kept, cache = tmp_path / "transcript.jsonl", tmp_path / "kept", tmp_path / "cache"
    flags = ["--transcript", str(transcript), "--trajectory-dir", str(kept), "--prompt-cache-dir", str(cache)]
    done = launch(tiny_model, tmp_path, mark, *flags)
    events = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert [event["type"] for event in events] == ["user", "assistant", "answer"]
    assert done.stdout == events[-1]["text"] + "\n"
    assert "neither a tool call nor an answer" in done.stderr
    (path,) = kept.iterdir()
    trajectory = atraj.read(path)
    assert [step.role for step in trajectory.steps] == ["system", "user", "assistant"]
    assert 1 <= len(trajectory.steps[-1].ids) <= 30
    assert trajectory.data["model"] == fingerprint(tiny_model)
    assert LOADED not in done.stderr
    pages = len(list(cache.glob("*/*.bin")))
    prompt = len(trajectory.steps[0].ids) + len(trajectory.steps[1].ids)
    assert 1 <= pages <= prompt // PAGE  # of the prompt, and not of what the model said


@pytest.mark.slow
def test_the_second_launch_loads_the_prompt_and_another_prompt_does_not(
    tiny_model: Path, tmp_path: Path, mark: str
) -> None:
    cache = ("--prompt-cache-dir", str(tmp_path / "cache"), "--temperature", "0")
    first, second = (launch(tiny_model, tmp_path, mark, *cache) for _ in range(2))
    other = launch(tiny_model, tmp_path, mark, *cache, "--system", "Other words")
    pages = [len(list(folder.glob("*.bin"))) for folder in (tmp_path / "cache").iterdir()]
    assert LOADED not in first.stderr
    assert f"{LOADED} ({max(pages) * PAGE} tokens) — skipping prefill" in second.stderr
    assert LOADED not in other.stderr
    assert len(pages) == 2
    assert first.stdout == second.stdout
