"""What is simulated: engines, the trainer, the tasks, failures, the options of the schedule. Read from YAML.

Invariant: every number has a default with its source, and a file names only what differs. Times are in seconds,
lengths in tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from miles_lite.errors import UserError

LARGEST = 1e15
"""Of any number: a finite one."""
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
AtLeastZero = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Staleness = Annotated[int, msgspec.Meta(ge=0)]


class EngineModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine. Defaults: a dense 8B model in bf16 on one 80 GB GPU of 3.35 TB/s and 989 TFLOP/s."""

    step: Positive = 6e-3
    """A decoding step with an empty batch: 16 GB of weights at 3.35 TB/s, and 1 ms of the scheduler."""
    sequence: AtLeastZero = 2e-5
    """More for each sequence of the batch: sampling and the linear layers, 2 x 8e9 FLOPs near peak."""
    context: AtLeastZero = 4.4e-8
    """More for each token of context: 36 layers x 2 x 8 heads x 128 x 2 bytes at 3.35 TB/s."""
    prefill: Positive = 25_000.0
    """Tokens a second: 2 x 8e9 FLOPs each at 40 % of the peak."""
    kv_tokens: Positive = 370_000.0
    """Tokens that the KV cache holds: 88 % of 80 GB less the weights, 147 kB a token."""
    slots: Count = 512
    """`--max-running-requests`."""


class TrainerModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer and the way of weights to the engines."""

    tokens_per_second: Positive = 900_000.0
    """Of the whole trainer. 64 GPUs, 6 x 8e9 FLOPs a token, 55 % spent in the update, at 40 % of 989 TFLOP/s."""
    fixed: AtLeastZero = 5.0
    """Of a step, whatever its size: optimizer, fetching, metrics."""
    sync: AtLeastZero = 5.0
    """From the update's end until engines hold the weights, of which they stand still for `pause`."""
    pause: AtLeastZero = 2.0
    mode: Literal["in_place", "retract"] = "in_place"
    """What running generations do: `in_place` keeps their cache, `retract` prefills them again."""

    def __post_init__(self) -> None:
        if self.pause > self.sync:
            raise ValueError("trainer: pause is a part of sync, and cannot be longer")


class TaskModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What agents do."""

    tokens_p50: Positive = 2_000.0
    tokens_p99: Positive = 20_000.0
    """Generated in a whole rollout; log-normal, p99 ten times the median (Laminar, arXiv 2510.12633)."""
    longest: Positive = 32_768.0
    group_share: Share = 0.5
    """Share of the variance of log length that a prompt's rollouts have in common (Seer, arXiv 2511.14617)."""
    prompt: Positive = 400.0
    turns: Annotated[float, msgspec.Meta(ge=1, le=LARGEST)] = 3.0
    """On average; one at least."""
    observation: AtLeastZero = 150.0
    """Tokens that a tool's answer adds."""
    tool_p50: Positive = 1.0
    tool_p99: Positive = 10.0
    """Seconds of a tool between turns; log-normal."""
    failures: Share = 0.05
    """Share of rollouts that infrastructure ends, at a time of their own: 5 to 15 % in published runs."""

    def __post_init__(self) -> None:
        for what in ("tokens", "tool"):
            if getattr(self, f"{what}_p99") < getattr(self, f"{what}_p50"):
                raise ValueError(f"task: {what}_p99 is below {what}_p50")


class ScheduleModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a run that the simulation passes to its scheduler, under their names there."""

    rollout_batch_size: Count = 512
    n_samples_per_prompt: Count = 16
    max_weight_staleness: Staleness = 8
    pipeline_depth: Staleness | None = None
    rollout_concurrency: Count | None = None
    """Rollouts at once on the whole fleet; found by itself if not given."""

    def __post_init__(self) -> None:
        if (self.pipeline_depth or 0) > self.max_weight_staleness:
            raise ValueError("schedule: pipeline_depth is at most max_weight_staleness")


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A simulation. Defaults as described at each group."""

    engines: Count = 64
    sessions_per_engine: Count = 256
    """Agents that may be open at once for each engine."""
    steps: Annotated[int, msgspec.Meta(ge=2)] = 40
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    engine: EngineModel = msgspec.field(default_factory=EngineModel)
    trainer: TrainerModel = msgspec.field(default_factory=TrainerModel)
    task: TaskModel = msgspec.field(default_factory=TaskModel)
    schedule: ScheduleModel = msgspec.field(default_factory=ScheduleModel)

    def __post_init__(self) -> None:
        longest = self.task.prompt + self.task.longest
        if longest > self.engine.kv_tokens:
            raise ValueError(
                f"engine: kv_tokens {self.engine.kv_tokens:g} do not hold the longest rollout, of {longest:g} tokens "
                "(task: prompt and longest)"
            )


def read_scenario(path: Path) -> Scenario:
    """Raises UserError with the file, the path inside it and what is wrong there."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Scenario, strict=False)  # YAML takes 1e-9 for text
    except OSError as error:
        raise UserError(f"scenario {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError(f"scenario {path}: {error}") from error
