"""The agent command on real parts: an untrained model behind SGLang, tools that run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite import atraj
from tests.e2e.job import ROOT, assert_nothing_left, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ECHO = {
    "name": "echo",
    "description": "Print text",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "_exec": 'printf %s "$text"',
}


def test_gibberish_of_an_untrained_model_is_taken_as_the_answer_and_the_loop_ends(
    tiny_model: Path, tmp_path: Path, mark: str
) -> None:
    tools, transcript, kept = tmp_path / "tools.json", tmp_path / "transcript.jsonl", tmp_path / "kept"
    tools.write_text(json.dumps({"tools": [ECHO]}))
    flags = ["--single", "Use the echo tool", "--max-tokens", "30", "--max-steps", "1"]
    flags += ["--tools", str(tools), "--transcript", str(transcript), "--trajectory-dir", str(kept)]
    argv = [sys.executable, "-m", "miles_lite", "agent", str(tiny_model), *flags, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(argv, env=environment(mark), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    events = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert [event["type"] for event in events] == ["user", "assistant", "answer"]
    assert done.stdout == events[-1]["text"] + "\n"
    assert "neither a tool call nor an answer" in done.stderr
    (path,) = kept.iterdir()
    trajectory = atraj.read(path)
    assert [step.role for step in trajectory.steps] == ["system", "user", "assistant"]
    assert 1 <= len(trajectory.steps[-1].ids) <= 30
    assert trajectory.data["model"] == atraj.fingerprint(tiny_model)
    assert_nothing_left(mark)
