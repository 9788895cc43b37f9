"""What tests of launchers share: a job, and what it would run."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from miles_lite.config.options import Config, parse

REPO = Path(__file__).parents[2]
JOB = {
    "HF_CHECKPOINT": "/models/a model",
    "PROMPT_DATA": "/data/train.jsonl@[0:100]",
    "AGENT_FUNCTION": "agent.py:run",
    "ENVIRONMENT": "gem:game:GuessTheNumber-v0-easy",
    "ENVIRONMENT_ARGS": '{"max_turns": 4}',
    "INSTANCES": "/data/swe.jsonl",
    "REPOS": "/data/repos",
    "NUM_GPUS": "8",
    "MASTER_ADDR": "head-node",
    "WORKER_HOSTS": "worker-node",
    "IMAGE": "registry.example/miles-lite:1",
    "CLAIM": "runs",
    "RAY_AUTH_TOKEN": "a-ray-token",
    "WANDB_API_KEY": "a-wandb-key",
}


def dry_run(launcher: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [REPO / "launchers" / launcher, *arguments, "--dry-run"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_config(output: str) -> Config:
    """The config of the `miles-lite train` command among the printed lines."""
    command = next(line for line in output.splitlines() if "miles-lite train" in line)
    words = shlex.split(command)
    config, _ = parse(words[words.index("train") + 1 :])
    return config
