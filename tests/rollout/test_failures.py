from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.algorithms import ADVANTAGES
from miles_lite.config.training import Algorithm
from miles_lite.errors import FAILURES, RolloutError, Where
from miles_lite.rollout.failures import failure_of, note_failures, note_quarantined
from miles_lite.rollout.filters import check_reward_nonzero_std
from miles_lite.rollout.metrics import (
    eval_metrics,
    failure_metrics,
    mismatch_metrics,
    passrate_metrics,
    rollout_metrics,
)
from miles_lite.sample import Group, Rollout, Status
from miles_lite.train.advantages import estimate
from tests.rollout.helpers import make_rollout, make_sample

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_each_failure_leaves_a_line_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    bad = Rollout(7, 1, reward=1.0)
    bad.fail(Where.REWARD, "ValueError: embedded null byte")
    assert (bad.status, bad.reward) == (Status.FAILED, None)
    note_failures(path, 3, 12, [Rollout(6, 1), bad])
    note_failures(path, 4, None, [Rollout(8, 2)])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line == {
        "rollout/step": 3,
        "rollout": 7,
        "prompt_row": 12,
        "status": "failed",
        "where": "reward",
        "why": "ValueError: embedded null byte",
    }


def test_the_page_says_of_each_place_what_the_registry_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8").partition("## Failures")[2], re.M)
    assert dict(rows[: len(FAILURES)]) == {str(where): meaning for where, meaning in FAILURES.items()}
    assert set(FAILURES) == set(Where)


class Lost(RuntimeError):
    where = "tool"


def test_an_error_or_one_behind_it_says_where() -> None:
    wrapped = ValueError("no answer")
    wrapped.__cause__ = RolloutError("environment", "the container is gone")
    odd = ValueError("elsewhere")
    odd.where = "nowhere"  # type: ignore[attr-defined]
    places = [failure_of(error, at=Where.AGENT).where for error in (Lost(), wrapped, odd, KeyError("x"))]
    assert places == [Where.TOOL, Where.ENVIRONMENT, Where.AGENT, Where.AGENT]
    assert str(failure_of(wrapped, at=Where.AGENT)) == "environment: ValueError: no answer"
    with pytest.raises(ValueError, match="elsewhere"):
        RolloutError("elsewhere", "no such place")


def ended(index: int, reward: float) -> Rollout:
    return make_rollout(index, 0, make_sample(4, 2), reward=reward, status=Status.COMPLETED)


def broken(where: Where) -> Rollout:
    rollout = ended(99, 1.0)
    rollout.fail(where, "why")
    return rollout


@given(
    rewards=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=3),
    where=st.lists(st.sampled_from(Where), max_size=3),
    alone=st.booleans(),
)
def test_what_failed_changes_no_statistic_of_the_others(
    rewards: list[list[float]], where: list[Where], alone: bool
) -> None:
    groups = [Group(at, {}, [ended(i, reward) for i, reward in enumerate(each)]) for at, each in enumerate(rewards)]
    joined = [Group(group.index, {}, [*map(broken, where), *group.rollouts]) for group in groups]
    joined += [Group(len(groups), {}, list(map(broken, where)))] if alone and where else []

    def statistics(groups: list[Group]) -> dict[str, float]:
        counted = {*failure_metrics(groups), *mismatch_metrics(groups), "eval/held-failed_ratio"}
        found = rollout_metrics(groups, groups) | passrate_metrics(groups) | eval_metrics("held", groups)
        return {name: value for name, value in found.items() if name not in counted}

    assert statistics(joined) == statistics(groups)
    verdicts = [[check_reward_nonzero_std(group) for group in each[: len(groups)]] for each in (groups, joined)]
    assert verdicts[0] == verdicts[1]
    for name in ADVANTAGES:
        options = Algorithm(advantage_estimator=name)
        assert estimate(joined, options)[1] == estimate(groups, options)[1]


def test_prompts_that_are_not_dealt_again_are_listed_with_their_last_error(tmp_path: Path) -> None:
    path = tmp_path / "quarantined.jsonl"
    assert note_quarantined(path, 0, []) == []
    assert not path.exists()
    broken = [make_rollout(at, 0, make_sample(4, 2)) for at in range(2)]
    broken[1].fail(Where.TOOL, "no disk")
    [said] = note_quarantined(path, 3, [Group(index=0, prompt={"row": 7}, rollouts=broken)])
    assert said == "the prompt of line 7 failed too often: it is not dealt again (tool: no disk)"
    assert json.loads(path.read_text()) == {"rollout/step": 3, "prompt_row": 7, "why": "tool: no disk"}
