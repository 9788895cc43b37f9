"""The metric names that this room itself reads back: for the step line, the plot, the gauges and the summary.

Invariant: a name written here is the name under which the rollout, the trainer or the loop logs the value.
"""

from __future__ import annotations

ROLLOUT_STEP = "rollout/step"
TRAIN_STEP = "train/step"
EVAL_STEP = "eval/step"

REWARD = "rollout/reward_unfiltered"
"""What the policy earns: filters that drop easy and hopeless groups do not bend this curve."""
REWARD_SPREAD = "rollout/reward_unfiltered_std"
RESPONSE_LEN = "rollout/response_len/mean"
TRUNCATED = "rollout/truncated_ratio"
FAILED = "rollout/failed_ratio"
ZERO_STD = "rollout/zero_std_unfiltered_ratio"
WEIGHT_VERSION = "rollout/weight_version/min"

STALENESS = "rollout/fully_async/avg_staleness"
STALENESS_QUEUED = "rollout/fully_async/avg_staleness_queued"
STALENESS_BOUND = "rollout/fully_async/staleness_bound"

LOGPROB_GAP = "train/train_rollout_logprob_abs_diff"
LOGPROB_GAP_MAX = "train/train_rollout_logprob_abs_diff_max"
NUMERICS_GAP = "train/logprob_gap/numerics"
"""Of tokens for which trainer and engines have computed the same."""

ENTROPY = "train/entropy_loss"
GRAD_NORM = "train/grad_norm"
ENGINE_RESTARTS = "rollout/engine_restarts"
MISMATCHED_TEXT = "rollout/tito_mismatch/non_assistant_text"
GAPS = {
    "numerics": NUMERICS_GAP,
    "staleness": "train/logprob_gap/staleness",
    "routes": "train/logprob_gap/routes",
    "off_context": "train/logprob_gap/off_context",
}
"""By cause: the mean over the trained tokens that have it."""

TOKENS_PER_SECOND = "perf/rollout_tok_per_s"
ENGINES_BUSY = "perf/engines_busy_ratio"
ROLLOUT_BUSY = "perf/rollout_busy_ratio"
"""Share of the step in which some agent ran."""
TRAIN_WAIT = "perf/wait_time_ratio"
"""Share of the step in which nothing was trained."""
ROLLOUT_TIME = "perf/rollout_time"
TRAIN_TIME = "perf/train_time"
UPDATE_WEIGHTS_TIME = "perf/update_weights_time"
STEP_TIME = "perf/step_time"
OVERHEAD_TIME = "perf/overhead_time"
"""Seconds of the step that `observe.overhead.uncovered` counts."""

RESTARTS = "perf/restarts"
DISK_FREE = "perf/disk_free_gb"

_TOLD = [value for name, value in globals().items() if name.isupper()]
READ_BACK = frozenset(name for name in [*_TOLD, *GAPS.values()] if isinstance(name, str))
"""All of those above, which a page is made of."""

ALARMS = "alarm/"
"""And the rule."""


def failed(where: str) -> str:
    """Rollouts that broke there."""
    return f"rollout/failed/count_{where}"


def heldout(name: str) -> str:
    """The mean reward of the held-out dataset `name`."""
    return f"eval/{name}"
