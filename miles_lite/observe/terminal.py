"""One readable line per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from miles_lite.report import metric_names as names


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{value:.1f}s"


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", names.REWARD, "{:.3f}".format),
    ("zero-std", names.ZERO_STD, _percent),
    ("len", names.RESPONSE_LEN, "{:.0f}".format),
    ("cut", names.TRUNCATED, _percent),
    ("failed", names.FAILED, _percent),
    ("gap", names.LOGPROB_GAP, "{:.1e}".format),
    ("rollout", names.ROLLOUT_TIME, _seconds),
    ("train", names.TRAIN_TIME, _seconds),
    ("sync", names.UPDATE_WEIGHTS_TIME, _seconds),
    ("step", names.STEP_TIME, _seconds),
)
"""Title, metric, format. A metric that the step did not log leaves its column out."""


LARGE_GAP = 0.1
"""Nats between trainer and engine, on average, that rounding does not explain, also of bfloat16."""


def step_line(step: int, *, total: int, metrics: Mapping[str, float]) -> str:
    """`step  3/60  reward 0.412  zero-std 25% ...` from everything that step `step` (counted from 1) logged."""
    shown = [f"{title} {form(metrics[name])}" for title, name, form in COLUMNS if name in metrics]
    return "  ".join([f"step {step:>{len(str(total))}}/{total}", *shown])


def failures_line(metrics: Mapping[str, float]) -> str:
    """`tool 3, timeout 1`: how many rollouts of a step failed where; empty when none did."""
    prefix = "rollout/failed/count_"
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix) and value}
    return ", ".join(f"{name} {value:.0f}" for name, value in sorted(found.items()))


def eval_line(step: int, *, total: int, metrics: Mapping[str, float], datasets: Iterable[str]) -> str:
    """`eval  3/60  held_out 0.412`: the mean reward of each of `datasets`, `step` training steps in."""
    shown = [f"{name} {metrics[names.heldout(name)]:.3f}" for name in datasets if names.heldout(name) in metrics]
    return "  ".join([f"eval {step:>{len(str(total))}}/{total}", *shown])


def gap_line(metrics: Mapping[str, float]) -> str | None:
    """What is to be said of a training step on whose tokens trainer and engines should have agreed, and did not."""
    gap = metrics.get(names.NUMERICS_GAP, 0.0)
    if gap < LARGE_GAP:
        return None
    return (
        f"warning: of the same ids and weights, trainer and engines say logprobs that differ by {gap:.2f} nats on "
        "average: they do not compute the same model. See 'Tokens differ' in docs/debug.md"
    )
