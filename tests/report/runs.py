"""Run folders as runs leave them: healthy ones, and ones with a fault."""

from __future__ import annotations

import functools
import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from miles_lite.report import fleet_rows, json_lines, rollout_table
from miles_lite.report import metric_names as names

Row = dict[str, Any]
Fault = Callable[[int, Row, list[Row]], None]
"""Changes the metrics and the rollouts of a step."""
STEPS, GROUPS, MEMBERS = 40, 8, 4
FLEET = "fleet"
"""Under which a fault puts what engines say in its step."""
BEGAN = 1.7e9


def write_run(
    folder: Path, *, seed: int, fault: Fault | None = None, steps: int = STEPS, ended: bool = True, tables: int = STEPS
) -> Path:
    """A run that learns, with the noise of `seed`; `fault` changes what each step says. Rollouts are there of the
    last `tables` steps."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options = {"model": {"hf_checkpoint": "/models/tiny"}, "optimizer": {"lr": 1e-3}, "seeding": {"seed": seed}}
    (folder / "config.json").write_text(json.dumps(options))
    looks: list[Row] = []
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            metrics, rollouts = _step(rng, step)
            if fault is not None:
                fault(step, metrics, rollouts)
            if step >= steps - tables:
                table = rollout_table.step_path(folder, step)
                table.parent.mkdir(exist_ok=True)
                table.write_bytes(_written(step, pickle.dumps(rollouts)))
            said = metrics.pop(FLEET, {})
            looks += [{**look, **said} for look in _looks(rng, step)]
            axes: dict[str, Row] = {names.ROLLOUT_STEP: {}, names.TRAIN_STEP: {}, names.EVAL_STEP: {}}
            for name, value in metrics.items():
                room = name.partition("/")[0]
                axis = {"train": names.TRAIN_STEP, "eval": names.EVAL_STEP}.get(room, names.ROLLOUT_STEP)
                axes[axis][name] = value
            file.writelines(json.dumps({axis: step, **given}) + "\n" for axis, given in axes.items() if given)
    (folder / fleet_rows.FILE).write_bytes(json_lines.encoded(looks))
    if ended:
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))
    return folder


@functools.lru_cache(maxsize=1024)
def _written(step: int, rows: bytes) -> bytes:
    """The table of a step's pickled rows, which most faults leave as they are: written once."""
    with TemporaryDirectory() as folder:
        rollout_table.write(Path(folder), step, pickle.loads(rows))
        return rollout_table.step_path(Path(folder), step).read_bytes()


def _looks(rng: random.Random, step: int) -> list[Row]:
    """How two engines stood at the middle of a step."""
    at = {"time": BEGAN + 10 * step + 5, "step": step, "version": step, "preempted": 0, "tokens_per_second": 500.0}
    return [
        {**at, "engine": engine, "running": 8, "queued": rng.randrange(4), "kv_use": rng.uniform(0.4, 0.97)}
        for engine in range(2)
    ]


def _step(rng: random.Random, step: int) -> tuple[Row, list[Row]]:
    chance = 0.2 + 0.6 * (1 - math.exp(-step / 12))
    rollouts = [_rollout(rng, step, group, member, chance) for group in range(GROUPS) for member in range(MEMBERS)]
    rewards = [row["reward"] for row in rollouts]
    metrics = {
        names.REWARD: sum(rewards) / len(rewards),
        names.ZERO_STD: rng.uniform(0.1, 0.5),
        names.TRUNCATED: rng.uniform(0, 0.1),
        names.FAILED: 0.0,
        names.RESPONSE_LEN: rng.uniform(80, 120),
        names.LOGPROB_GAP: rng.uniform(1e-3, 2e-3),
        names.GAPS["numerics"]: rng.uniform(1e-3, 2e-3),
        names.GAPS["staleness"]: rng.uniform(1e-3, 4e-3),
        names.GRAD_NORM: rng.uniform(0.5, 1.5),
        names.ENTROPY: rng.uniform(0.4, 0.6),
        names.ENGINE_RESTARTS: 0.0,
        names.MISMATCHED_TEXT: 0.0,
        names.ROLLOUT_TIME: rng.uniform(6, 8),
        names.TRAIN_TIME: rng.uniform(2, 3),
        names.UPDATE_WEIGHTS_TIME: rng.uniform(0.1, 0.2),
        names.STEP_TIME: rng.uniform(9, 12),
        names.OVERHEAD_TIME: rng.uniform(0.1, 0.5),
        names.DISK_FREE: 60.0 - 0.1 * step - rng.uniform(0, 2),
        names.STALENESS: rng.uniform(0.9, 1.1),
        names.STALENESS_QUEUED: rng.uniform(0.3, 0.5),
        names.STALENESS_BOUND: 2.0,
    }
    if step % 10 == 0:
        metrics |= {"eval/heldout": chance, "eval/heldout-none_reward_ratio": 0.0}
    return metrics, rollouts


def _rollout(rng: random.Random, step: int, group: int, member: int, chance: float) -> Row:
    began, model, tool = (
        BEGAN + 10 * step + rng.uniform(0, 1),
        rng.lognormvariate(0.6, 0.5),
        rng.lognormvariate(-0.5, 0.5),
    )
    return {
        "step": step,
        "rollout": (step * GROUPS + group) * MEMBERS + member,
        "group": step * GROUPS + group,
        "prompt_row": str(group),
        "outcome": rollout_table.TRAINED,
        "status": "completed",
        "where": None,
        "why": None,
        "reward": float(rng.random() < chance),
        "zero_std": False,
        "samples": 1,
        "tokens": 300,
        "prompt_tokens": 200,
        "trained_tokens": 100,
        "truncated": False,
        "min_version": step,
        "max_version": step,
        "started_at": began,
        "finished_at": began + model + tool + 0.1,
        "queue": 0.05,
        "model": model,
        "tool": tool,
        "tools": json.dumps({"bash": 0.7 * tool, "search": 0.3 * tool}),
        "forks": None if rng.random() < 0.5 else '{"edit":1}',
        "reward_time": 0.02,
    }


def all_rows(folder: Path) -> list[Row]:
    """Of all steps, in their order."""
    return [row for path in rollout_table.files(folder) for row in rollout_table.readable(path).to_pylist()]


def fail(row: Row, where: str, why: str) -> None:
    row.update(where=where, why=why, reward=None, status="failed", outcome=f"failed_{where}")


def _failing(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts[::6]:
        fail(row, "tool", "RuntimeError: the sandbox <b>has</b> gone & does not answer")
    metrics[names.FAILED] = len(rollouts[::6]) / len(rollouts)


def _dead(step: int, metrics: Row, rollouts: list[Row]) -> None:
    if step >= STEPS - 2:
        for row in rollouts:
            fail(row, "engine", "no engine answers")


def _set(name: str, value: Callable[[int], float]) -> Fault:
    def fault(step: int, metrics: Row, rollouts: list[Row]) -> None:
        metrics[name] = value(step)

    return fault


def _engines(**said: float) -> Fault:
    def fault(step: int, metrics: Row, rollouts: list[Row]) -> None:
        metrics[FLEET] = said

    return fault


def _tools(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts:
        row["tool"] = 6 * row["model"]
        row["finished_at"] = row["started_at"] + row["model"] + row["tool"]


def _gap(step: int, metrics: Row, rollouts: list[Row]) -> None:
    if step > STEPS // 2:
        metrics[names.LOGPROB_GAP] = metrics[names.GAPS["staleness"]] = 0.08


FAULTS: dict[str, Fault] = {
    "nothing_finishes": _dead,
    "failures": _failing,
    "reward_collapse": _set(names.REWARD, lambda step: 0.7 if step < STEPS - 6 else 0.1),
    "no_gradient": _set(names.ZERO_STD, lambda step: 0.97),
    "reward_flat": _set(names.REWARD, lambda step: 0.3 + 0.01 * (step % 3)),
    "gap": _gap,
    "entropy_collapse": _set(names.ENTROPY, lambda step: 0.5 if step < 10 else 0.001),
    "gradient_spike": _set(names.GRAD_NORM, lambda step: 60.0 if step == STEPS - 4 else 1.0),
    "engine_restarts": _set(names.ENGINE_RESTARTS, lambda step: step // 8),
    "kv_full": _engines(kv_use=0.99, preempted=2),
    "queues": _engines(running=8, queued=30),
    "truncation": _set(names.TRUNCATED, lambda step: 0.6),
    "template_drift": _set(names.MISMATCHED_TEXT, lambda step: 0.2),
    "slow_tools": _tools,
    "disk_full": _set(names.DISK_FREE, lambda step: 60.0 - 1.4 * step),
    "staleness": _set(names.STALENESS, lambda step: 1.95),
    "idle": _set(names.OVERHEAD_TIME, lambda step: 6.0),
}
"""By the rule that must see it."""


def _one_tool(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts:
        row["tool"] = row["model"]
        row["tools"] = json.dumps({"bash": 0.9 * row["tool"], "search": 0.1 * row["tool"]})


def _reanchored(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts[::8]:
        row["forks"] = '{"reanchored":2}'


def _timeouts(step: int, metrics: Row, rollouts: list[Row]) -> None:
    for row in rollouts:
        fail(row, "timeout", "the agent function did not finish within 120 s")


OTHER_FAULTS: dict[str, tuple[str, Fault]] = {
    "one tool of several": ("slow_tools", _one_tool),
    "histories that a template cannot go on from": ("template_drift", _reanchored),
    "no rollout ever ends": ("nothing_finishes", _timeouts),
    "a disk that is full": ("disk_full", _set(names.DISK_FREE, lambda step: 0.5)),
    "a reward that sinks": ("reward_collapse", _set(names.REWARD, lambda step: 0.8 * (1 - step / STEPS))),
}
NO_FAULTS = {"few steps have a gradient": _set(names.GRAD_NORM, lambda step: 1.0 if step % 4 == 0 else 0.0)}
"""More of them, with their rule."""
