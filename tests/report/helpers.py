"""What tests of pages share: a small run, its kept trajectories, and text that no page may take for its own."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from miles_lite.report.rollout_table import Row, trajectory_path
from miles_lite.traces import atraj
from miles_lite.traces.token_values import TokenValues, put
from tests.report.runs import fail, write_run

NASTY = "</p><script>alert('x')</script> \x00\x1b[31m & <img src=x onerror=alert(1)> \u202e\x9b"


def keep(folder: Path, row: Row, ids: list[int], *, said: str = "bye", turns: int = 1) -> None:
    """A trajectory of a row's rollout: each turn is told "hello" and says `ids`, of weights 3 and then 4."""
    told = [
        {
            "turn": turn,
            "parent": turn - 1 if turn else None,
            "messages": [{"role": "user", "content": NASTY}],
            "reply": {"content": said},
            "drop": 0,
            "prompt_ids": [1, 2],
            "output_ids": ids,
            "output_logprobs": [math.log(0.95 / (1 + at)) for at in range(len(ids))],
            "temperature": 1.0,
            "finish_reason": "stop",
            "weight_versions": [[3, 0, 1], [4, 1, len(ids)]],
        }
        for turn in range(turns)
    ]
    made = atraj.build({"model": {}, "leaves": [turns - 1], "turns": told}, reward=row["reward"])
    atraj.write(made, trajectory_path(folder, row["step"], row["rollout"]))


def a_run(folder: Path, model: Path | None = None) -> Path:
    def broken(step: int, metrics: Row, rollouts: list[Row]) -> None:
        for member, row in enumerate(rollouts):
            row["reward"] = float(member % 2)
        fail(rollouts[0], "tool", NASTY)
        fail(rollouts[3], "engine", "no engine answers")

    write_run(folder, seed=1, steps=4, fault=broken)
    if model is not None:
        (folder / "config.json").write_text(json.dumps({"model": {"hf_checkpoint": str(model)}}))
    return folder


def credit(folder: Path, row: Row, ids: list[int], *, trainer: list[float], advantages: list[float]) -> None:
    """Training has told of the first of the tokens that a kept rollout's first turn sampled."""
    path = trajectory_path(folder, row["step"], row["rollout"])
    values = TokenValues(
        rollout=row["rollout"],
        turn=0,
        places=np.arange(len(trainer)),
        ids=np.array(ids[: len(trainer)]),
        logprobs=np.array(trainer, np.float32),
        advantages=np.array(advantages, np.float32),
    )
    atraj.write(put(atraj.read(path), [values]), path)


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
