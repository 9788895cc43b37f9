"""Metrics of a rollout, computed from its groups before anything reaches the trainer.

Invariant: every function is pure, and no reward, metadata value or missing field makes one raise: a metric whose data
is absent is left out. Statistics are over rollouts (agent executions) that were judged, never over the samples a
rollout fans out to: what failed is counted, and changes no statistic of the others.
Shares named `*_ratio` and `*_percentage` lie in [0, 1].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import pstdev

import numpy as np

from miles_lite.config.rewards import Overlong
from miles_lite.report import metric_names
from miles_lite.report.group_tally import pass_at
from miles_lite.rollout.agent_report import AGENT_TIMES, AGENT_TOTALS, agent_report, number
from miles_lite.rollout.generate import Step
from miles_lite.rollout.judging import CATEGORY
from miles_lite.sample import Group, Rollout, SampleRecord, Status

Metrics = dict[str, float]

NONE_LABEL = "none"
"""The zero-std label of a group whose rollouts all have no reward, or that has no rollouts."""

MISMATCHES = ("special_token_count", "special_token_type", "non_assistant_text", "assistant_text")


def rollout_metrics(groups: Sequence[Group], unfiltered_groups: Sequence[Group]) -> Metrics:
    """Everything that is logged about one training rollout.

    groups             what the trainer gets
    unfiltered_groups  what was run to get it: `groups`, and those that filters dropped or that failed
    """
    found = {**failure_metrics(unfiltered_groups), **mismatch_metrics(unfiltered_groups)}
    groups, unfiltered_groups = judged(groups), judged(unfiltered_groups)
    return {
        **found,
        **reward_metrics(groups, unfiltered_groups),
        **_spread("rollout/response_len", [rollout.trained_tokens for rollout in _rollouts(groups)]),
        **_present("rollout/truncated_ratio", _share(map(_truncated, _rollouts(groups)))),
        **_under("rollout/zero_std/", zero_std(groups)),
        **_under("rollout/zero_std_unfiltered/", zero_std(unfiltered_groups)),
        **_present("rollout/zero_std_ratio", _share(map(no_gradient, groups))),
        **_present("rollout/zero_std_unfiltered_ratio", _share(map(no_gradient, unfiltered_groups))),
        **weight_version_metrics(groups),
        **agent_metrics(groups),
        **named_reward_metrics(groups),
        **environment_metrics(groups),
    }


def step_metrics(step: Step, *, overlong: Overlong | None, passrate: bool) -> Metrics:
    """What a step's groups say, those that were run again too; `passrate` is --log-passrate."""
    return {
        **rollout_metrics(step.groups, step.finished),
        **{f"rollout/dynamic_filter/drop_{reason}": float(count) for reason, count in step.dropped.items()},
        **(overlong_metrics(step.groups, overlong) if overlong else {}),
        **(passrate_metrics(step.groups) if passrate else {}),
        **{f"rollout/retried/count_{where}": float(count) for where, count in step.replaced_by_where.items()},
    }


def eval_metrics(name: str, groups: Sequence[Group]) -> Metrics:
    """The metrics of one held-out dataset; a rollout that ended without a reward counts as 0 in `eval/<name>`."""
    prefix = f"eval/{name}"
    failed = _share(rollout.failure is not None for rollout in _rollouts(groups))
    groups = judged(groups)
    rewards = [number(rollout.reward) for rollout in _rollouts(groups)]
    return {
        **_present(f"{prefix}-failed_ratio", failed),
        **_present(prefix, _mean([0.0 if reward is None else reward for reward in rewards])),
        **_present(f"{prefix}-none_reward_ratio", _share(reward is None for reward in rewards)),
        **_present(f"{prefix}-truncated_ratio", _share(map(_truncated, _rollouts(groups)))),
        **_under(f"{prefix}-", pass_rates(groups)),
        **_spread(f"{prefix}/response_len", [rollout.trained_tokens for rollout in _rollouts(groups)]),
        **_under(f"{prefix}/zero_std/", zero_std(groups)),
    }


def passrate_metrics(groups: Sequence[Group]) -> Metrics:
    """`passrate/pass@k`, logged with --log-passrate."""
    return _under("passrate/", pass_rates(groups))


def reward_metrics(groups: Sequence[Group], unfiltered_groups: Sequence[Group]) -> Metrics:
    """Mean rewards: `reward` leaves rollouts without one out, `raw_reward` counts them as 0."""
    rewards = [number(rollout.reward) for rollout in _rollouts(groups)]
    given = [number(rollout.reward) for rollout in _rollouts(unfiltered_groups)]
    before = [reward for reward in given if reward is not None]
    return {
        **_present("rollout/reward", _mean([reward for reward in rewards if reward is not None])),
        **_present("rollout/raw_reward", _mean([0.0 if reward is None else reward for reward in rewards])),
        **_present("rollout/reward_unfiltered", _mean(before)),
        **_present("rollout/reward_unfiltered_std", pstdev(finite) if (finite := _finite(before)) else None),
    }


def named_reward_metrics(groups: Sequence[Group]) -> Metrics:
    """The mean of each of several rewards, and the shares of what --log-reward-category names."""
    named = [given for rollout in _rollouts(groups) if isinstance(given := rollout.metadata.get("rewards"), dict)]
    names = sorted({str(name) for given in named for name in given})
    values = {name: [value for given in named if (value := number(given.get(name))) is not None] for name in names}
    said = [str(rollout.metadata[CATEGORY]) for rollout in _rollouts(groups) if CATEGORY in rollout.metadata]
    return {
        **{f"rollout/rewards/{name}": sum(each) / len(each) for name, each in values.items() if each},
        **{f"rollout/error_cat/{name}": count / len(said) for name, count in sorted(Counter(said).items())},
    }


def overlong_metrics(groups: Sequence[Group], overlong: Overlong) -> Metrics:
    """What training takes from rewards for length, which the rewards that are logged do not show."""
    taken = [
        overlong.penalty(sample.longest_turn for sample in rollout.samples) for rollout in _rollouts(judged(groups))
    ]
    return {
        **_present("rollout/overlong/ratio", _share(penalty < 0 for penalty in taken)),
        **_present("rollout/overlong/penalty", _mean(taken)),
    }


def environment_metrics(groups: Sequence[Group]) -> Metrics:
    """Of each environment: its rollouts, their mean reward and turns, and the mean of each number that it says."""
    found: dict[str, list[Metrics]] = {}
    for rollout in _rollouts(groups):
        told = rollout.metadata.get("environment")
        if isinstance(told, Mapping):
            numbers = told["numbers"] if isinstance(told.get("numbers"), Mapping) else {}
            given = {**numbers, "reward": rollout.reward, "turns": rollout.metadata.get("turns")}
            finite = {str(name): value for name, each in given.items() if (value := number(each)) is not None}
            found.setdefault(str(told.get("label")), []).append(finite)
    return {
        f"environment/{label}/{name}": value
        for label, every in sorted(found.items())
        for name in ("rollouts", *sorted({name for each in every for name in each}))
        if (value := float(len(every)) if name == "rollouts" else _mean([each[name] for each in every if name in each]))
        is not None
    }


def zero_std(groups: Iterable[Group]) -> Metrics:
    """Groups whose rollouts all earned the same reward, and so carry no gradient, counted by that reward.

    `count_<label>`: the reward as a float rounded to one decimal ("1.0", "0.0" for -0.0, "nan", "inf"), or "none".
    `all_zero_percentage`, `all_one_percentage`: those labelled 0.0 and 1.0 as a share of all groups.
    """
    every = list(groups)
    counts = Counter(_label(group) for group in every if no_gradient(group))
    shares = {"all_zero_percentage": counts["0.0"], "all_one_percentage": counts["1.0"]}
    return {
        **{f"count_{label}": float(count) for label, count in sorted(counts.items())},
        **{name: count / len(every) for name, count in shares.items() if every},
    }


def judged(groups: Iterable[Group]) -> list[Group]:
    """The groups without their failed rollouts, and without those of which nothing else is left."""
    return [replace(group, rollouts=group.judged) for group in groups if group.judged or not group.rollouts]


def failure_metrics(groups: Sequence[Group]) -> Metrics:
    """Rollouts that ended without a reward, failed or aborted, and how many of the last two broke where."""
    rollouts = _rollouts(groups)
    counts = Counter(rollout.failure.where for rollout in rollouts if rollout.failure is not None)
    return {
        **_present("rollout/none_reward_ratio", _share(number(rollout.reward) is None for rollout in rollouts)),
        **_present("rollout/failed_ratio", _share(rollout.status is Status.FAILED for rollout in rollouts)),
        **_present("rollout/aborted_ratio", _share(rollout.status is Status.ABORTED for rollout in rollouts)),
        **{metric_names.failed(where): float(count) for where, count in sorted(counts.items())},
    }


def mismatch_metrics(groups: Sequence[Group]) -> Metrics:
    """Rollouts with a difference of each class from what the chat template prints, of those that were compared.

    `not_compared` is the share of samples, of those for which it was asked, that could not be.
    """
    asked = [found for rollout in _rollouts(groups) if (found := list(map(_mismatches, _asked(rollout))))]
    kinds = [{kind for each in found for kind in each or ()} for found in asked if found.count(None) < len(found)]
    shares = {kind: _share(kind in found for found in kinds) for kind in MISMATCHES}
    shares["not_compared"] = _share(each is None for found in asked for each in found)
    return _under("rollout/tito_mismatch/", {name: share for name, share in shares.items() if share is not None})


def weight_version_metrics(groups: Sequence[Group]) -> Metrics:
    """The oldest weight version that sampled a rollout's tokens, and how many rollouts mix several."""
    versions = [found for found in map(_versions, _rollouts(groups)) if found]
    return {
        **_spread("rollout/weight_version", [min(found) for found in versions]),
        **_present("rollout/weight_version/mixed_version_ratio", _share(len(found) > 1 for found in versions)),
    }


def staleness_metrics(groups: Sequence[Group], step: int) -> Metrics:
    """How old trained tokens are when the trainer begins `step`, in weight versions, each token counted.

    A token ages in flight, until its rollout ends, and in the queue, until it is trained.
    """
    ages = [
        (step - version, step - (rollout.ended_version or 0), count)
        for rollout in _rollouts(groups)
        for sample in rollout.samples
        for version, count in sample.trained_by_version
    ]
    tokens = sum(count for _, _, count in ages)
    if not tokens:
        return {}
    mean, queued = (sum(age[at] * age[2] for age in ages) / tokens for at in (0, 1))
    return {
        "rollout/fully_async/avg_staleness": mean,
        "rollout/fully_async/max_staleness": float(max(age for age, _, _ in ages)),
        "rollout/fully_async/avg_staleness_queued": queued,
        "rollout/fully_async/avg_staleness_in_flight": mean - queued,
    }


def agent_metrics(groups: Sequence[Group]) -> Metrics:
    """Means (and sums of counts) of what agents reported about themselves, over the rollouts that reported it."""
    reports = [agent_report(rollout.metadata) for rollout in _rollouts(groups)]
    values = {name: [report[name] for report in reports if name in report] for name in AGENT_TOTALS + AGENT_TIMES}
    return {
        **{f"agent/{name}_mean": sum(given) / len(given) for name, given in values.items() if given},
        **{f"agent/{name}_sum": sum(values[name]) for name in AGENT_TOTALS if values[name]},
    }


def pass_rates(groups: Iterable[Group]) -> Metrics:
    """`pass@k` for k = 1, 2, 4, ... up to the group size n; correct means reward == 1.

    The unbiased estimator (`pass_at`), averaged over the groups of k rollouts and more. Where no group has two they say
    nothing.
    """
    solved = [[number(reward) == 1.0 for reward in group.rewards] for group in groups]
    size = max(map(len, solved), default=0)
    rates = {}
    for k in (2**power for power in range(size.bit_length()) if size > 1):
        correct = [(len(marks), sum(marks)) for marks in solved if len(marks) >= k]
        rates[f"pass@{k}"] = sum(pass_at(k, n, c) for n, c in correct) / len(correct)
    return rates


def _rollouts(groups: Iterable[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def _finite(values: Iterable[object]) -> list[float]:
    return [number for number in map(number, values) if number is not None and math.isfinite(number)]


def no_gradient(group: Group) -> bool:
    """Whether all rewards are the same; NaN equals NaN, None equals None, and a group of none or one is equal."""
    rewards = map(number, group.rewards)
    return len({"nan" if reward is not None and math.isnan(reward) else reward for reward in rewards}) <= 1


def _label(group: Group) -> str:
    """The bucket of a zero-std group: its one reward as a float with one decimal."""
    reward = number(group.rewards[0]) if group.rollouts else None
    return NONE_LABEL if reward is None else str(round(reward, 1) + 0.0)


def _asked(rollout: Rollout) -> list[SampleRecord]:
    return [sample for sample in rollout.samples if "tito_session_mismatch" in sample.metadata]


def _mismatches(sample: SampleRecord) -> set[str] | None:
    """The classes of a sample's differences; None when it was not compared."""
    entries = sample.metadata["tito_session_mismatch"]
    if not isinstance(entries, list):
        return None
    return {str(entry.get("type")) for entry in entries if isinstance(entry, Mapping)}


def _truncated(rollout: Rollout) -> bool:
    return rollout.status is Status.TRUNCATED or any(sample.ends_cut for sample in rollout.samples)


def _versions(rollout: Rollout) -> set[int]:
    return {version for sample in rollout.samples for version in sample.weight_versions}


def _mean(values: Sequence[float]) -> float | None:
    """The mean of the finite values; None where there is none."""
    finite = _finite(values)
    return sum(finite) / len(finite) if finite else None


def _share(marks: Iterable[bool]) -> float | None:
    counted = list(marks)
    return sum(counted) / len(counted) if counted else None


def _spread(prefix: str, values: Sequence[int]) -> Metrics:
    if not values:
        return {}
    array = np.asarray(values, dtype=np.float64)
    found = {"mean": array.mean(), "median": np.median(array), "max": array.max(), "min": array.min()}
    return {f"{prefix}/{name}": float(value) for name, value in found.items()}


def _present(name: str, value: float | None) -> Metrics:
    return {} if value is None else {name: value}


def _under(prefix: str, metrics: Mapping[str, float]) -> Metrics:
    return {prefix + name: value for name, value in metrics.items()}
