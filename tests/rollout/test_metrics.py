"""Rollout metrics: the worked example of zero-std, the laws it obeys, and data that is missing or odd."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.rewards import Overlong
from miles_lite.errors import Where
from miles_lite.rollout.metrics import (
    eval_metrics,
    overlong_metrics,
    pass_rates,
    passrate_metrics,
    rollout_metrics,
    zero_std,
)
from miles_lite.sample import Group, Rollout, SampleRecord, Status
from tests.rollout.helpers import a_group, a_rollout, a_sample, failed, of


def test_what_length_costs_is_told_apart_from_rewards() -> None:
    rollouts = [a_rollout(samples=[a_sample(trained)]) for trained in (2, 4, 5, 6, 8)]
    groups = of(*rollouts, failed(Where.TOOL))
    assert overlong_metrics(groups, Overlong(6, 2, 0.5)) == {
        "rollout/overlong/ratio": 3 / 5,
        "rollout/overlong/penalty": pytest.approx(-(0.25 + 0.5 + 0.5) / 5),
    }
    assert rollout_metrics(groups, groups)["rollout/reward"] == 1.0
    assert overlong_metrics([], Overlong(6, 2, 0.5)) == {}


def test_zero_std_worked_example() -> None:
    groups = [a_group(1, 1, 1), a_group(0, 0), a_group(1, 0), a_group(None, None), a_group(0.5, 0.5)]
    assert zero_std(groups) == {
        "count_1.0": 1,
        "count_0.0": 1,
        "count_none": 1,
        "count_0.5": 1,
        "all_zero_percentage": pytest.approx(1 / 5),
        "all_one_percentage": pytest.approx(1 / 5),
    }


@pytest.mark.parametrize(
    ("rewards", "label"),
    [
        ((1,), "1.0"),
        ((True, True), "1.0"),
        ((False, 0, 0.0), "0.0"),
        ((-0.0, -0.0), "0.0"),
        ((-0.04, -0.04), "0.0"),
        ((0.26, 0.26), "0.3"),
        ((np.float32(0.5), 0.5), "0.5"),
        ((np.bool_(True), 1), "1.0"),
        ((math.nan, math.nan), "nan"),
        ((math.inf, math.inf), "inf"),
        ((10**400, 10**400), "inf"),
        ((None,), "none"),
        ((), "none"),
    ],
)
def test_zero_std_labels(rewards: tuple, label: str) -> None:
    found = zero_std([a_group(*rewards)])
    assert found[f"count_{label}"] == 1
    assert sum(value for name, value in found.items() if name.startswith("count_")) == 1


@pytest.mark.parametrize("rewards", [(0, 1), (0.0, None), (0.51, 0.52), (math.nan, 0.0)])
def test_groups_with_a_gradient_are_not_counted(rewards: tuple) -> None:
    assert zero_std([a_group(*rewards)]) == {"all_zero_percentage": 0.0, "all_one_percentage": 0.0}


REWARDS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([0, 1, 0.0, -0.0, 1.0]))
GROUPS = st.lists(st.lists(REWARDS, max_size=5).map(lambda rewards: a_group(*rewards)), max_size=8)


@given(GROUPS)
def test_zero_std_laws(groups: list[Group]) -> None:
    found = zero_std(groups)
    buckets = sum(value for name, value in found.items() if name.startswith("count_"))
    varied = sum(len({str(0.0 + r) if r is not None else "none" for r in group.rewards}) > 1 for group in groups)
    assert buckets == len(groups) - varied
    shares = [found.get("all_zero_percentage", 0.0), found.get("all_one_percentage", 0.0)]
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert sum(shares) <= 1.0


@given(GROUPS, GROUPS)
def test_no_reward_stops_a_step(kept: list[Group], dropped: list[Group]) -> None:
    found = rollout_metrics(kept, kept + dropped) | passrate_metrics(kept) | eval_metrics("held", kept)
    assert all(type(value) is float for value in found.values())
    assert all(0.0 <= value <= 1.0 for name, value in found.items() if name.endswith(("_ratio", "_percentage")))
    json.dumps(found)


def test_before_filtering_is_counted_apart() -> None:
    mixed, ones = a_group(0, 1), a_group(1, 1)
    found = rollout_metrics([mixed], [mixed, ones])
    assert "rollout/zero_std/count_1.0" not in found
    assert found["rollout/zero_std_unfiltered/count_1.0"] == 1
    assert found["rollout/zero_std_unfiltered/all_one_percentage"] == 0.5
    assert found["rollout/reward"] == 0.5
    assert found["rollout/reward_unfiltered"] == 0.75


def test_reward_without_and_with_missing_ones() -> None:
    groups = [a_group(1.0, None)]
    found = rollout_metrics(groups, groups)
    assert found["rollout/reward"] == 1.0
    assert found["rollout/raw_reward"] == 0.5
    assert found["rollout/none_reward_ratio"] == 0.5
    assert "rollout/reward" not in rollout_metrics([a_group(None)], [])


def test_differences_from_the_template_are_shares_of_the_rollouts_compared() -> None:
    def compared(*entries: Any) -> Rollout:
        samples = [a_sample(1, metadata={"tito_session_mismatch": entry}) for entry in entries]
        return a_rollout(samples=samples)

    spelled, count = {"type": "assistant_text"}, {"type": "special_token_count"}
    groups = of(compared([]), compared([spelled, spelled], [count]), compared(None), compared(None, [spelled, 7]))
    found = rollout_metrics([], groups)
    assert found["rollout/tito_mismatch/assistant_text"] == pytest.approx(2 / 3)
    assert found["rollout/tito_mismatch/special_token_count"] == pytest.approx(1 / 3)
    assert found["rollout/tito_mismatch/non_assistant_text"] == 0.0
    assert found["rollout/tito_mismatch/not_compared"] == pytest.approx(2 / 6)
    assert not [name for name in rollout_metrics([], of(a_rollout(samples=[a_sample(1)]))) if "tito_mismatch" in name]


def test_lengths_are_per_rollout_not_per_sample() -> None:
    groups = of(a_rollout(samples=[a_sample(3), a_sample(4)]), a_rollout(samples=[a_sample(1)]))
    found = rollout_metrics(groups, groups)
    spread = {name: found[f"rollout/response_len/{name}"] for name in ("mean", "median", "max", "min")}
    assert spread == {"mean": 4.0, "median": 4.0, "max": 7.0, "min": 1.0}


def test_truncated_by_rollout_or_by_sample() -> None:
    groups = of(
        a_rollout(status=Status.TRUNCATED),
        a_rollout(samples=[a_sample(3), a_sample(2, status=Status.TRUNCATED)]),
        a_rollout(samples=[a_sample(3)]),
        a_rollout(samples=[_continued(a_sample(2, status=Status.TRUNCATED)), a_sample(3)]),
    )
    assert rollout_metrics(groups, groups)["rollout/truncated_ratio"] == 0.5


def _continued(sample: SampleRecord) -> SampleRecord:
    sample.metadata["continued"] = True
    return sample


def test_failures_are_counted_by_where() -> None:
    groups = of(failed(Where.ENGINE), failed(Where.ENGINE), failed(Where.AGENT), failed(Where.TIMEOUT), a_rollout())
    found = rollout_metrics([], groups)
    assert found["rollout/failed_ratio"] == pytest.approx(3 / 5)
    assert found["rollout/aborted_ratio"] == pytest.approx(1 / 5)
    assert found["rollout/none_reward_ratio"] == pytest.approx(4 / 5)
    counts = {name: value for name, value in found.items() if "/failed/" in name}
    assert counts == {f"rollout/failed/count_{where}": n for where, n in (("agent", 1), ("engine", 2), ("timeout", 1))}


def test_weight_versions_take_the_oldest_of_each_rollout() -> None:
    groups = of(
        a_rollout(samples=[a_sample(4, [7, 8])]),
        a_rollout(samples=[a_sample(2, [8]), a_sample(2, [8])]),
        a_rollout(samples=[a_sample(0)]),
        a_rollout(),
    )
    found = rollout_metrics(groups, groups)
    assert found["rollout/weight_version/min"] == 7
    assert found["rollout/weight_version/max"] == 8
    assert found["rollout/weight_version/mean"] == 7.5
    assert found["rollout/weight_version/mixed_version_ratio"] == 0.5


def test_agent_reports_may_be_missing_nested_or_odd() -> None:
    groups = of(
        a_rollout(metadata={"turns": 3, "eval_time": 0.5, "model_query_time": 2.0}),
        a_rollout(metadata={"agent_metrics": {"turns": 5, "tool_calls": 2, "eval_time": None}}),
        a_rollout(metadata={"agent_metrics": "none", "turns": "many", "tool_calls": math.nan}),
        a_rollout(),
    )
    found = {name: value for name, value in rollout_metrics(groups, groups).items() if name.startswith("agent/")}
    assert found == {
        "agent/turns_mean": 4.0,
        "agent/turns_sum": 8.0,
        "agent/tool_calls_mean": 2.0,
        "agent/tool_calls_sum": 2.0,
        "agent/model_query_time_sum_mean": 2.0,
        "agent/eval_time_mean": 0.5,
    }


def test_pass_at_k_by_hand() -> None:
    found = pass_rates([a_group(1, 0, 0, None), a_group(1, 1, 1, 1), a_group(1)])
    assert found == {
        "pass@1": pytest.approx((1 / 4 + 1 + 1) / 3),
        "pass@2": pytest.approx((1 / 2 + 1) / 2),
        "pass@4": pytest.approx(1.0),
    }
    assert pass_rates([a_group(1), a_group(0)]) == {}


@given(st.integers(2, 12).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_pass_at_k_grows_with_k_and_starts_at_the_mean(marks: list[list[bool]]) -> None:
    found = list(pass_rates([a_group(*group) for group in marks]).values())
    assert found == sorted(found)
    assert found[0] == pytest.approx(np.mean(marks))
    assert found[-1] <= 1.0


def test_evaluation_counts_a_missing_reward_as_zero() -> None:
    found = eval_metrics("held", [a_group(1, None), a_group(1, 0)])
    assert found["eval/held"] == 0.5
    assert found["eval/held-none_reward_ratio"] == 0.25
    assert found["eval/held-truncated_ratio"] == 0.0
    assert found["eval/held-pass@2"] == 1.0
