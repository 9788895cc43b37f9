"""Rollouts that go on while the trainer trains, and what a checkpoint keeps of them."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from miles_lite.config.rollouts import Data, Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.errors import UserError
from miles_lite.rollout import resume
from miles_lite.rollout.generate import Generator, Step, schedule_of
from miles_lite.rollout.prompts import DataSource, Prompt
from miles_lite.sample import Rollout, Status
from miles_lite.scheduler.accounts import Accounts
from tests.rollout.helpers import make_rollout, make_sample, without_ray

STEPS = 6


class Stage:
    """A generator over ten prompts; every rollout is answered at once, or when `open` is set."""

    def __init__(self, *, staleness: int, batch: int = 2, members: int = 2) -> None:
        self.options = Rollouts(rollout_batch_size=batch, n_samples_per_prompt=members, num_rollout=STEPS)
        self.scheduling = Scheduling(max_weight_staleness=staleness)
        self.source = DataSource([Prompt(row=row, input="x") for row in range(10)], Data(prompt_data=""))
        self.index, self.running, self.rows = count(), 0, []  # type: ignore[var-annotated]
        self.open = asyncio.Event()
        self.open.set()
        self.generator = Generator(
            self.options,
            schedule_of(self.options, self.scheduling, steps=STEPS),
            source=self.source,
            run_rollout=self.run,
            filter_function=None,
            accounts=Accounts(),
        )

    async def run(self, prompt: Prompt, group_index: int) -> Rollout:
        self.running += 1
        await self.open.wait()
        await asyncio.sleep(0)
        self.running -= 1
        sample = make_sample(4, 2)
        return make_rollout(next(self.index), group_index, sample, reward=1.0, status=Status.COMPLETED)

    async def step(self, number: int) -> Step:
        self.generator.updated(number)
        step = await self.generator.run(lambda: None)
        self.rows += [group.prompt["row"] for group in step.groups]
        return step


async def test_rollouts_go_on_while_a_batch_is_trained_and_no_further_than_the_bound() -> None:
    for staleness, open_ in ((0, 0), (1, 2), (3, 4)):
        stage = Stage(staleness=staleness)
        await stage.step(0)
        stage.open.clear()
        accounts = stage.generator.accounts
        while accounts.in_flight < open_:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert accounts.in_flight == open_
        assert stage.running <= open_


async def test_a_run_starts_no_group_that_its_last_step_does_not_need() -> None:
    stage = Stage(staleness=3)
    for number in range(STEPS):
        assert len((await stage.step(number)).groups) == 2
    accounts = stage.generator.accounts
    assert (accounts.started, accounts.trained, accounts.in_flight) == (2 * STEPS, 2 * STEPS, 0)


@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize(("staleness", "training"), [(0, False), (1, False), (1, True), (3, True), (3, False)])
async def test_a_resumed_run_trains_what_the_other_would_have(
    staleness: int, training: bool, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it ends while a batch is trained: that is given again."""
    without_ray(monkeypatch, resume)

    stage = Stage(staleness=staleness)
    for number in range(stop):
        await stage.step(number)
    if training:
        await stage.step(stop)
        del stage.rows[-2:]
    stage.generator.trained(stop - 1)
    taken = resume.snapshot(stage.generator, stage.source, next_index=next(stage.index))
    await resume.save(str(tmp_path), stop - 1, taken)
    again = Stage(staleness=staleness)
    await resume.load(str(tmp_path), stop - 1, again.generator, again.source)
    again.rows = list(stage.rows)
    for number in range(stop, STEPS):
        step = await again.step(number)
        assert all(len(group.rollouts) == 2 and rollout.fetch() for group in step.groups for rollout in group.rollouts)
    assert again.generator.accounts.started == again.generator.accounts.trained == 2 * STEPS
    assert sorted(again.rows) == sorted([row % 10 for row in range(2 * STEPS)])


async def test_another_bound_or_size_takes_over_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch, resume)

    stage = Stage(staleness=3)
    await stage.step(0)
    taken = resume.snapshot(stage.generator, stage.source, next_index=next(stage.index))
    assert json.dumps(taken.plain)
    await resume.save(str(tmp_path), 0, taken)
    again = Stage(staleness=0, members=3)
    await resume.load(str(tmp_path), 0, again.generator, again.source)
    again.rows = list(stage.rows)
    for number in range(1, 5):
        assert all(len(group.rollouts) == 3 for group in (await again.step(number)).groups)
    assert sorted(again.rows) == list(range(10))


async def test_samples_of_checkpoints_that_are_gone_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch, resume)
    stage = Stage(staleness=1)
    for number in range(3):
        await stage.step(number)
        taking = partial(resume.snapshot, stage.generator, stage.source, next_index=0)
        while not taking().waiting:
            await asyncio.sleep(0)
        (tmp_path / f"iter_{number:07d}").mkdir()
        await resume.save(str(tmp_path), number, taking())
        if number == 1:
            (tmp_path / "iter_0000000").rmdir()
    kept = sorted(path.stem[-1] for path in (tmp_path / "rollout").glob("*.pt"))
    assert kept == ["1", "2"]


async def test_a_rollout_that_breaks_between_steps_ends_the_next_one() -> None:
    given = asyncio.Event()

    class Breaking(Stage):
        async def run(self, prompt: Prompt, group_index: int) -> Rollout:
            if group_index >= 2:
                await given.wait()
                raise UserError("no worker is left")
            return await super().run(prompt, group_index)

    stage = Breaking(staleness=1)
    await stage.step(0)
    given.set()
    await asyncio.sleep(0.01)
    with pytest.raises(UserError, match="no worker"):
        await stage.step(1)
    assert stage.generator.accounts.in_flight == 0
