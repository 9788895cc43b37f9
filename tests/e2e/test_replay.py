"""`miles-lite replay` on a real engine: a recorded rollout goes on from its very tokens."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.model_folder import fingerprint
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.traces import atraj
from tests.e2e.job import ROOT, assert_nothing_left, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def recorded(folder: Path, model: Path) -> Path:
    """A run folder with a trajectory of two turns, whose tokens no template has printed, and with weights v3."""
    options = {"hf_checkpoint": str(model), "tito_allowed_append_roles": ["tool", "user"]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"all": options}))
    saved = folder / "weights" / "v3"
    saved.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        if (model / name).exists():
            shutil.copy(model / name, saved / name)
    turns = [
        {
            "turn": turn,
            "parent": turn - 1 if turn else None,
            "messages": [{"role": "user", "content": f"question {turn}"}],
            "reply": {"role": "assistant", "content": f"answer {turn}"},
            "drop": 0,
            "prompt_ids": [50 + turn, 60, 61],
            "output_ids": [70, 71 + turn, 2],
            "output_logprobs": [-0.5, -0.5, -0.5],
            "temperature": 1.0,
            "finish_reason": "stop",
            "weight_versions": [[1, 0, 3]],
        }
        for turn in range(2)
    ]
    made = atraj.build({"model": fingerprint(model), "leaves": [1], "turns": turns}, reward=1.0)
    atraj.write(made, trajectory_path(folder, 4, 17))
    return folder


def command(run: Path, tmp_path: Path, *flags: str) -> list[str]:
    out = ["--out", str(tmp_path / "out.atraj"), "--run-dir", str(tmp_path / "replay"), "--max-tokens", "5"]
    return [sys.executable, "-m", "miles_lite", "replay", str(run), "17", *out, *flags]


def test_a_turn_is_answered_anew_from_the_very_tokens_that_were_recorded(
    tiny_model: Path, tmp_path: Path, mark: str
) -> None:
    run = recorded(tmp_path / "run", tiny_model)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    argv = command(run, tmp_path, "--turn", "1", "--weights", "v3")
    done = subprocess.run(
        argv, env=environment(mark), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=350
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert_nothing_left(mark)
    made = atraj.read(tmp_path / "out.atraj")
    (path,) = made.paths()
    assert [step.ids for step in path[:3]] == [[50, 60, 61], [70, 71, 2], [51, 60, 61]]
    assert 1 <= len(path[3].ids) <= 5
    assert done.stdout == f"{path[3].content}\n"
    assert "weights v3: " in done.stderr
    of = {"run": str(run), "rollout": 17, "turn": 1, "weights": "v3"}
    assert made.data["metadata"] == {"replay_of": of}
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_person_goes_on_on_a_terminal(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    run = recorded(tmp_path / "run", tiny_model)
    mine, its = pty.openpty()
    argv = command(run, tmp_path, "--turn", "2")
    process = subprocess.Popen(
        argv, env=environment(mark), cwd=ROOT, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.write(mine, b"and now?\n:quit\n")
    out, err = process.communicate(timeout=350)
    os.close(mine)
    os.close(its)
    assert process.returncode == 0, err[-6000:]
    assert_nothing_left(mark)
    for line in ("user> question 0", "assistant> answer 0", "user> question 1", "assistant> answer 1", "you> "):
        assert line in err
    (path,) = atraj.read(tmp_path / "out.atraj").paths()
    assert [step.content for step in path[3:5]] == ["answer 1", "and now?"]
    assert out == f"assistant> {path[5].content}\n"
