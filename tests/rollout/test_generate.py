from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.rollouts import Data, Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.errors import UserError, Where
from miles_lite.hooks import GroupFilter
from miles_lite.rollout.filters import check_reward_nonzero_std
from miles_lite.rollout.generate import Generator, schedule_of
from miles_lite.rollout.prompts import DataSource, Prompt
from miles_lite.sample import Group, Rollout, Status
from miles_lite.scheduler.accounts import Accounts
from tests.rollout.helpers import make_rollout, make_sample


def make_generator(
    options: Rollouts,
    outcomes: list[float | None],
    filter_function: GroupFilter | None = None,
    seconds: float = 0.001,
    retries: int = 0,
    prompts: Sequence[Prompt] = (),
    unrewarded: int | None = None,
) -> Generator:
    """A generator whose rollouts end with the given rewards, in turn, each after a moment of its own. None is a failure
    of infrastructure, but of the rollout `unrewarded`."""
    index = count()

    async def run_rollout(prompt: Prompt, group_index: int) -> Rollout:
        number = next(index)
        await asyncio.sleep(seconds * random.Random(number).random())
        reward = outcomes[number % len(outcomes)]
        rollout = make_rollout(number, group_index, make_sample(4, 2), reward=reward, status=Status.COMPLETED)
        if reward is None and number != unrewarded:
            rollout.fail(Where.ENGINE, "boom")
        return rollout

    return Generator(
        options,
        schedule_of(options, Scheduling(max_sample_retries=retries)),
        source=DataSource(prompts or [Prompt(row=1, input="x")], Data(prompt_data="")),
        run_rollout=run_rollout,
        filter_function=filter_function,
        accounts=Accounts(),
    )


def balanced(accounts: Accounts) -> bool:
    return accounts.in_flight == 0 and accounts.started > 0


@settings(max_examples=30, deadline=None)
@given(
    outcomes=st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=7),
    batch=st.integers(1, 4),
    over=st.integers(0, 4),
    filtered=st.booleans(),
)
def test_every_prompt_is_accounted_for(outcomes: list[float | None], batch: int, over: int, filtered: bool) -> None:
    options = Rollouts(rollout_batch_size=batch, n_samples_per_prompt=2, over_sampling_batch_size=batch + over)
    generator = make_generator(options, outcomes, check_reward_nonzero_std if filtered else None)
    with contextlib.suppress(UserError):  # nothing was kept: the accounts must hold all the same
        step = asyncio.run(generator.run(lambda: None))
        assert 0 < len(step.groups) <= batch
        assert generator.accounts.trained == len(step.groups)
    assert balanced(generator.accounts)


async def test_a_filter_that_keeps_nothing_ends_with_the_reason() -> None:
    options = Rollouts(rollout_batch_size=2, n_samples_per_prompt=2)
    generator = make_generator(options, [1.0], check_reward_nonzero_std)
    with pytest.raises(UserError, match=r"zero_std_1\.0 x40"):
        await generator.run(lambda: None)
    assert generator.accounts.filtered == 20 * 2


async def test_a_groups_prompt_is_read_once_however_many_rollouts_it_has() -> None:
    class Rows(list[Prompt]):
        reads = 0

        def __getitem__(self, at: Any) -> Any:
            self.reads += 1
            return super().__getitem__(at)

    rows = Rows([Prompt(row=1, input="x")])
    options = Rollouts(rollout_batch_size=3, n_samples_per_prompt=4)
    generator = make_generator(options, [1.0, None], retries=2, prompts=rows)
    await generator.run(lambda: None)
    assert generator.accounts.rollouts_retried > 0
    assert rows.reads == generator.accounts.started == 3


@pytest.mark.parametrize(("policy", "reward"), [("drop", None), ("zero", 0.0)])
async def test_the_none_policy_decides_what_becomes_of_a_missing_reward_and_not_of_a_failure(
    policy: Literal["drop", "zero"], reward: float | None
) -> None:
    options = Rollouts(rollout_batch_size=1, n_samples_per_prompt=3, none_reward_policy=policy)
    generator = make_generator(options, [1.0, None, None], unrewarded=1)
    step = await generator.run(lambda: None)
    assert {rollout.index: rollout.reward for rollout in step.groups[0].rollouts} == {0: 1.0, 1: reward, 2: None}
    assert generator.accounts.failures == {"engine": 1} | ({"none_reward": 1} if policy == "drop" else {})


async def test_a_rollout_that_ended_without_a_reward_did_not_fail() -> None:
    options = Rollouts(rollout_batch_size=1, n_samples_per_prompt=3)
    generator = make_generator(options, [1.0, None, None], unrewarded=1)
    await generator.run(lambda: None)
    assert generator.accounts.rollouts_failed == 1
    assert generator.accounts.failures == {"engine": 1, "none_reward": 1}


async def test_the_error_policy_stops_with_the_rollouts_reason() -> None:
    options = Rollouts(rollout_batch_size=1, none_reward_policy="error")
    generator = make_generator(options, [None])
    with pytest.raises(UserError, match=r"rollout 0 has no reward \(engine: boom\)"):
        await generator.run(lambda: None)


async def test_a_dead_stack_ends_the_step_and_books_what_was_running() -> None:
    generator = make_generator(Rollouts(rollout_batch_size=3), [1.0], seconds=100)

    def check() -> None:
        if generator.accounts.started:
            raise UserError("no engine is left")

    with pytest.raises(UserError, match="no engine"):
        await asyncio.wait_for(generator.run(check), 5)
    assert balanced(generator.accounts)


async def test_a_rollout_that_infrastructure_failed_is_run_again_in_its_group_and_counted() -> None:
    options = Rollouts(rollout_batch_size=1, n_samples_per_prompt=3)
    generator = make_generator(options, [1.0, None, 0.0], retries=2)
    step = await generator.run(lambda: None)
    assert sorted(rollout.index for rollout in step.groups[0].rollouts) == [0, 2, 3]
    assert [rollout.index for group in step.replaced for rollout in group.rollouts] == [1]
    assert sum(step.replaced_by_where.values()) == 1
    accounts = generator.accounts
    assert (accounts.trained, accounts.rollouts_retried, accounts.rollouts_failed) == (1, 1, 0)


def test_accounts_survive_a_round_trip() -> None:
    accounts = Accounts(started=3, trained=2, failed=1, failures={"timeout": 2})
    assert Accounts(**json.loads(json.dumps(dataclasses.asdict(accounts)))) == accounts


def test_groups_without_samples_count_as_zero_std() -> None:
    assert not check_reward_nonzero_std(Group(index=0, prompt={})).keep
