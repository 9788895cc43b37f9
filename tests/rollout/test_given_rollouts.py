"""Rollout functions in miles' signatures, in the place of the generator."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.options import parse
from miles_lite.config.rollouts import Data
from miles_lite.errors import UserError
from miles_lite.plugins import field_args
from miles_lite.plugins.field_sample import Sample, to_own
from miles_lite.rollout.given_rollouts import FieldDataSource, GivenRollouts, evaluated
from miles_lite.rollout.manager import RolloutManager
from miles_lite.rollout.prompts import DataSource, Prompt
from miles_lite.sample import Status
from miles_lite.scheduler.accounts import Accounts
from tests.rollout.test_manager import FakeStack, drive

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 2 --n-samples-per-prompt 2 --num-rollout 1".split()


def prompts(count: int) -> DataSource:
    return DataSource(
        [Prompt(row=row, input=f"q{row}", label=row) for row in range(1, count + 1)], Data(prompt_data="")
    )


SOURCE = """
from miles.utils.types import Sample


def filled(group):
    for sample in group:
        sample.tokens, sample.response_length = [1, 2, 3, 4], 2
        sample.rollout_log_probs, sample.reward = [-0.5, -1.0], {"score": 1.0}
        sample.status, sample.response = Sample.Status.COMPLETED, sample.prompt + "!"
    return group


def plain(args, rollout_id, data_source, evaluation=False):
    if evaluation:
        return {"held": {"rewards": [1.0, None], "truncated": [False, False]}}
    groups = data_source.get_samples(args.rollout_batch_size + 1)
    data_source.add_samples(groups[2:])
    return [filled(group) for group in groups[:2]]


class Made:
    def __init__(self, given):
        self.args, self.source = given.args, given.data_source

    async def __call__(self, given):
        assert (given.rollout_id, given.evaluation) == (0, False)
        return type("Output", (), {"samples": [filled(group) for group in self.source.get_samples(2)]})


def nothing(args, rollout_id, data_source, evaluation=False):
    return [[3]]
"""


@pytest.fixture
def alone() -> Iterator[None]:
    """What stands in for miles, and its arguments, are gone afterwards."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("miles", "slime")]:
        del sys.modules[name]
    vars(field_args.current()).clear()


@pytest.fixture
def made(alone: None, tmp_path: Path) -> Callable[[str], GivenRollouts]:
    file = tmp_path / "theirs.py"
    file.write_text(SOURCE)
    config, _ = parse(NEEDED)
    field_args.use(config)

    def make(name: str) -> GivenRollouts:
        return GivenRollouts(
            f"{file}:{name}",
            config.rollouts,
            source=FieldDataSource(prompts(9), config.rollouts.n_samples_per_prompt),
            key="score",
            router_url=lambda: "http://127.0.0.1:30000",
            accounts=Accounts(),
        )

    return make


async def test_its_groups_are_those_of_the_step_and_every_prompt_is_accounted_for(made: Any) -> None:
    given = made("plain")
    step = await given.run(lambda: None)
    assert [group.prompt["label"] for group in step.groups] == [1, 2]
    (first, second), (third, _) = (group.rollouts for group in step.groups)
    assert (first.index, second.index, third.index) == (0, 1, 2)
    assert (first.reward, first.status, first.metadata["response"]) == (1.0, Status.COMPLETED, "q1!")
    (sample,) = first.fetch()
    assert (sample.tokens.tolist(), sample.loss_mask.tolist()) == ([1, 2, 3, 4], [0, 0, 1, 1])
    books = given.accounts
    assert (books.started, books.trained, books.unused, books.in_flight) == (3, 2, 0, 1), "one was given back"
    again = await given.run(lambda: None)
    assert [group.prompt["label"] for group in again.groups] == [3, 4]
    assert (books.started, books.trained, books.unused, books.in_flight) == (5, 4, 0, 1)


async def test_a_class_is_made_once_and_called(made: Any) -> None:
    step = await made("Made").run(lambda: None)
    assert len(step.groups) == 2
    assert (field_args.current().sglang_router_ip, field_args.current().sglang_router_port) == ("127.0.0.1", 30000)


async def test_what_gives_no_samples_is_named(made: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--rollout-function-path .*theirs.py:nothing: gave no groups of samples"):
        await made("nothing").run(lambda: None)
    with pytest.raises(UserError, match=r"--eval-function-path .*: expected \{dataset"):
        await evaluated(f"{tmp_path / 'theirs.py'}:nothing", 0)


async def test_what_it_evaluates_is_logged(made: Any, tmp_path: Path) -> None:
    assert await evaluated(f"{tmp_path / 'theirs.py'}:plain", 0) == {"eval/held": 0.5}


def test_what_is_given_back_is_dealt_again_first() -> None:
    source = FieldDataSource(prompts(4), 1)
    groups = source.get_samples(3)
    source.add_samples(groups[1:])
    assert source.get_samples(3)[:2] == groups[1:]
    assert source.dealt == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 3), unique=True), st.booleans()), max_size=12))
def test_what_is_given_back_is_dealt_again_wherever_a_run_is_killed(
    steps: list[tuple[int, list[int], bool]],
) -> None:
    """A source that is made anew again and again deals what one that lives on deals, partial answers included."""
    lives, killed = FieldDataSource(prompts(5), 2), FieldDataSource(prompts(5), 2)
    for number, (size, back, dies) in enumerate(steps):
        dealt = [source.get_samples(size) for source in (lives, killed)]
        assert list(map(told, dealt[0])) == list(map(told, dealt[1]))
        for source, groups in zip((lives, killed), dealt, strict=True):
            for group in groups:
                group[0].tokens, group[0].rollout_log_probs = [1, number], [-0.5]
                group[0].rollout_routed_experts = np.full((1, 2, 2), number, np.uint8)
                group[1].status, group[1].metadata["at"] = Sample.Status.ABORTED, {"step": number}
            source.add_samples([groups[at] for at in back if at < size])
        if dies:
            saved = json.loads(json.dumps(killed.state()))
            for group in killed._back:
                group[0].tokens.append(9)  # after it was saved
            killed = FieldDataSource(prompts(5), 2)
            killed.restore(saved)
        assert (lives.dealt, lives.waiting) == (killed.dealt, killed.waiting)


def told(group: list[Sample]) -> list[str]:
    return [json.dumps(one.to_dict(), default=np.ndarray.tolist) for one in group]


def test_what_no_file_can_hold_is_named_when_it_is_given_back() -> None:
    source = FieldDataSource(prompts(1), 1)
    ((sample,),) = source.get_samples(1)
    sample.metadata["self"] = sample.metadata
    source.add_samples([[sample]])
    with pytest.raises(
        UserError, match="--rollout-function-path: a sample that it gave back cannot be saved: Circular"
    ):
        source.state()


def test_routed_experts_that_were_lists_are_checked_as_arrays_are() -> None:
    known: dict[str, Any] = {"tokens": [1, 2, 3], "response_length": 1, "rollout_log_probs": [-1.0]}
    known["status"] = Sample.Status.COMPLETED
    own = to_own(Sample(**known, rollout_routed_experts=[[[1]], [[2]]]), temperature=1.0, version=0)
    assert own.routed_experts is not None
    assert own.routed_experts.shape == (2, 1, 1)
    with pytest.raises(ValueError, match="routed_experts has 1 rows for 3 tokens"):
        to_own(Sample(**known, rollout_routed_experts=[[[1]]]), temperature=1.0, version=0)


THEIRS = """
from miles.utils.types import Sample


def theirs(args, rollout_id, data_source, evaluation=False):
    groups = data_source.get_samples(3)
    came_back = [group[0].metadata["came_back"] for group in groups if group[0].metadata]
    assert came_back == ([rollout_id - 1] if rollout_id else [])
    last = groups.pop()
    for sample in last:
        sample.metadata["came_back"] = rollout_id
    data_source.add_samples([last])
    for sample in (sample for group in groups for sample in group):
        sample.tokens, sample.response_length, sample.rollout_log_probs = [1, 2, 3], 2, [-0.5, -0.5]
        sample.status, sample.reward = Sample.Status.COMPLETED, float(rollout_id)
    return groups
"""


@pytest.mark.usefixtures("alone")
async def test_a_given_rollout_function_rolls_out_alone_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No agent runs beside it, no prompt is dealt but to it, it is told which step it is, and what it gave back it gets
    again."""
    monkeypatch.setattr(FakeStack, "routers", SimpleNamespace(urls=[""], of=lambda index: "http://127.0.0.1:1"))
    (tmp_path / "theirs.py").write_text(THEIRS)
    flags = ["--rollout-function-path", f"{tmp_path}/theirs.py:theirs", "--num-rollout", "4"]

    async def run(manager: RolloutManager, steps: range) -> Accounts:
        await manager.start()
        if steps.start:
            await manager.load(str(tmp_path), steps.start - 1)
        for step in steps:
            groups = (await manager.generate(step)).groups
            assert [group.rewards for group in groups] == [[float(step)]] * 2
            await asyncio.sleep(0.01)
            await manager.save(str(tmp_path), step)
        assert [(group.index, rollout.index) for group in groups for rollout in group.rollouts] == [
            (2 * step + at, 2 * step + at) for at in range(2)
        ]
        return await manager.accounts()

    for steps in (range(2), range(2, 4)):
        (tmp_path / str(steps.start)).mkdir()
        manager, seen = drive(monkeypatch, tmp_path / str(steps.start), *flags)
        accounts = await run(manager, steps)
        assert not seen
        assert (accounts.started, accounts.trained) == (2 * steps.stop + 1, 2 * steps.stop)
        assert accounts.unused == 0
