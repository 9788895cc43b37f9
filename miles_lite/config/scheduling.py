"""What runs ahead of the trainer, and how much at once."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal, Self

from miles_lite.config.option import option
from miles_lite.errors import UserError

FULLY_ASYNC = 3
"""Steps that tokens may be old with --fully-async, where --max-weight-staleness does not say."""


AUTO = "auto"


def at_once(given: str) -> int | None:
    """The number that --rollout-concurrency gives; None where it is to be found. Raises UserError."""
    if given == AUTO:
        return None
    if not re.fullmatch("[1-9][0-9]*", given):
        raise UserError(f"--rollout-concurrency {given}: give {AUTO} or a number, at least 1")
    return int(given)


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """schedule: what runs ahead of the trainer, and how much at once."""

    max_weight_staleness: int | None = option(
        None,
        help="training steps that a token may be old when it is trained; 0: rollouts and training take turns "
        "(default), 1: one step off, more: fully asynchronous. Nothing is discarded for its age: it is not started",
        least=0,
    )
    pipeline_depth: int | None = option(
        None,
        help="steps that groups are started ahead (default: --max-weight-staleness, less 1 where that is above 1, so "
        "that stragglers can be overtaken)",
        least=0,
    )
    fully_async: bool = option(False, help=f"--max-weight-staleness {FULLY_ASYNC}, where that is not given")
    partial_rollout: bool = option(
        False, help="rollouts that a step does not need go on: --max-weight-staleness 1, where that is not given"
    )
    rollout_concurrency: str | None = option(
        None,
        help=f"rollouts at once (default, and at most: --num-agent-workers x --agent-concurrency); {AUTO}: as many as "
        "the engines' KV caches bear, found while they run",
        metavar="N|auto",
        check=lambda given: None if given is None else at_once(given),
        aka=("--async-max-concurrent-samples",),
    )
    rollout_submission_granularity: Literal["sample", "group"] = option(
        "sample", help="whether the next rollout starts when there is room for it, or for its whole group"
    )
    rollout_order: Literal["fifo", "longest"] = option(
        "fifo", help="which rollouts of a step start first: in turn, or those whose siblings were longest"
    )
    async_unused_samples_handler: Literal["drop", "retry"] = option(
        "drop",
        help="what becomes of the prompts of groups that over-sampling gave up: nothing, or they come again",
        with_="over_sampling_batch_size",
    )
    max_sample_retries: int = option(
        2,
        help="how often a rollout that infrastructure failed is run again in its group, while that is in time",
        least=0,
    )
    max_failure_share: float = option(
        0.8,
        help="share of failed rollouts among the last 256 above which the run ends, with the cause",
        above=0,
        most=1,
    )
    quarantine_after: int = option(
        3, help="groups of a prompt that fail in a row, after which it is not dealt again; 0: it always is", least=0
    )

    max_restarts: int = option(
        3,
        help="how often a run that lost a train rank or its rollout manager goes on by itself, from the last "
        "checkpoint; counted anew after each checkpoint",
        least=0,
    )

    @property
    def staleness(self) -> int:
        """The bound, in training steps."""
        if self.max_weight_staleness is not None:
            return self.max_weight_staleness
        return FULLY_ASYNC if self.fully_async else int(self.partial_rollout)

    @property
    def finds_concurrency(self) -> bool:
        """Whether how many rollouts run at once is to be found."""
        return self.rollout_concurrency == AUTO

    def most_at_once(self, room: int) -> int:
        """Rollouts at once where `room` is what agents have."""
        return (at_once(self.rollout_concurrency) if self.rollout_concurrency else None) or room

    def ahead(self) -> Self:
        """One step, where it is not said how many. Raises UserError where it is 0 that was given."""
        if self.max_weight_staleness == 0:
            raise UserError("train-async with --max-weight-staleness 0: leave that out, or say train")
        return self if self.overlaps else dataclasses.replace(self, max_weight_staleness=1)

    @property
    def overlaps(self) -> bool:
        """Whether rollouts go on while the trainer trains."""
        return self.staleness > 0
