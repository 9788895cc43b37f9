"""A run goes on with what was saved, whatever else is another now, or says in one message why it cannot."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from miles_lite.config.rollouts import Data, Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.errors import UserError, Where
from miles_lite.rollout import resume
from miles_lite.rollout.generate import Generator, schedule_of
from miles_lite.rollout.prompts import DataSource, Prompt, open_source
from miles_lite.rollout.resume import load
from miles_lite.sample import Rollout, Status
from miles_lite.scheduler.accounts import Accounts
from miles_lite.train.iterations import LATEST, latest_iteration
from tests.rollout.helpers import make_rollout, make_sample, without_ray

PROMPTS = 10


@pytest.mark.parametrize(
    "held", [b"", b"{", b"\xff\xfe", b"\x00", b"null", b"[]", b'{"data": {}}', b'{"data": {}, "members": {}']
)
async def test_a_damaged_state_of_rollouts(held: bytes, tmp_path: Path) -> None:
    (tmp_path / "rollout").mkdir()
    (tmp_path / "rollout" / "global_dataset_state_dict_3.json").write_bytes(held)
    with pytest.raises(UserError, match=r"--load .*: global_dataset_state_dict_3.json is damaged"):
        await load(str(tmp_path), 3, cast(Any, None), cast(Any, None))
    with pytest.raises(UserError, match=r"global_dataset_state_dict_4.json is missing"):
        await load(str(tmp_path), 4, cast(Any, None), cast(Any, None))


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", b"-1", b"9" * 400, b"1\n2", "\u0663".encode(), b"\x00", b"7.0"])
def test_a_marker_that_names_no_iteration(held: bytes, tmp_path: Path) -> None:
    (tmp_path / LATEST).write_bytes(held)
    with pytest.raises(UserError, match="expected an iteration number"):
        latest_iteration(tmp_path)


class Life:
    """A run between two ends: rollouts take a while, some fail, each says which version it began with."""

    def __init__(
        self,
        chance: random.Random,
        *,
        staleness: int,
        batch: int,
        members: int,
        failing: float = 0.1,
        extra: int = 0,
        **scheduling: Any,
    ) -> None:
        self.chance, self.staleness, self.members, self.failing = chance, staleness, members, failing
        options = Rollouts(
            rollout_batch_size=batch, n_samples_per_prompt=members, over_sampling_batch_size=batch + extra
        )
        self.source = DataSource([Prompt(row=row, input="x") for row in range(PROMPTS)], Data(prompt_data=""))
        self.generator = Generator(
            options,
            schedule_of(options, Scheduling(max_weight_staleness=staleness, **scheduling)),
            source=self.source,
            run_rollout=self.run,
            filter_function=None,
            accounts=Accounts(),
        )
        self.index = itertools.count()
        self.rows: list[int] = []

    async def run(self, prompt: Prompt, group_index: int) -> Rollout:
        version = self.generator.scheduler.version
        for _ in range(self.chance.choice([0, 0, 1, 5, 20])):
            await asyncio.sleep(0)
        rollout = make_rollout(next(self.index), group_index, make_sample(4, 2), reward=1.0, status=Status.COMPLETED)
        rollout.metadata = {"version": version}
        if self.chance.random() < self.failing:
            rollout.fail(Where.ENVIRONMENT, "it broke")
        return rollout

    async def step(self, number: int) -> list[int]:
        """The rows that are trained in it."""
        self.generator.updated(number)
        step = await self.generator.run(lambda: None)
        assert "" not in step.replaced_by_where, "a rollout that had not failed was run again"
        for group in step.groups:
            assert len(group.rollouts) == self.members
            for rollout in group.judged:
                assert rollout.fetch()
                assert number - rollout.metadata["version"] <= self.staleness
        return [group.prompt["row"] for group in step.groups]

    async def until_killed(self, folder: Path, step: int) -> int:
        """Some steps, of which the last but maybe one is saved; the step that is next."""
        if step:
            self.index = itertools.count(await load(str(folder), step - 1, self.generator, self.source))
        for step in range(step, step + self.chance.randint(1, 4)):  # noqa: B020 - goes on from where it was
            self.rows += await self.step(step)
        if self.staleness and self.chance.random() < 0.5:  # the next one has begun, and will have to begin again
            await self.step(step + 1)
        for _ in range(self.chance.choice([0, 3, 30])):
            await asyncio.sleep(0)
        self.generator.trained(step)
        self.taken = resume.snapshot(self.generator, self.source, next_index=next(self.index))
        await resume.save(str(folder), step, self.taken)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return step + 1


def sizes(chance: random.Random) -> dict[str, Any]:
    """How a run may be made, its engines fewer or more than before."""
    staleness = chance.choice([0, 0, 1, 2, 3])
    return {
        "staleness": staleness,
        "batch": chance.randint(1, 3),
        "members": chance.randint(1, 3),
        "extra": chance.choice([0, 0, 1, 3]),
        "pipeline_depth": chance.randint(0, staleness),
        "rollout_concurrency": str(chance.choice([3, 5, 64])),
        "rollout_submission_granularity": chance.choice(["sample", "group"]),
        "rollout_order": chance.choice(["fifo", "longest"]),
        "async_unused_samples_handler": "retry",
    }


@pytest.mark.parametrize("seed", range(25))
async def test_no_prompt_is_lost_or_trained_twice_whatever_changes_where_a_run_goes_on(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another bound, batch size, group size or number of engines, several times in a row."""
    without_ray(monkeypatch, resume)
    chance, step, rows, fewest = random.Random(seed), 0, Counter[int](), 0
    for _ in range(chance.randint(2, 5)):
        life = Life(chance, **sizes(chance))
        step = await life.until_killed(tmp_path, step)
        rows.update(life.rows)
        fewest += len(life.rows)
    plain = json.loads(json.dumps(life.taken.plain))
    data, accounts, run = plain["data"], plain["accounts"], plain["scheduler"]["run"]
    again = [group for begun, batch in run["given"] if begun >= step for group in batch]
    rows.update(group["prompt"] for group in [*run["groups"], *again])
    rows.update(run["returned"])
    dealt = Counter(number % PROMPTS for number in range(PROMPTS * data["epoch"] + data["offset"]))
    assert rows <= dealt, "one was trained twice"
    assert (dealt - rows).total() == accounts["failed"] + accounts["quarantined"], "one was lost"
    ends = [accounts[end] for end in ("trained", "filtered", "failed", "quarantined", "unused")]
    assert accounts["started"] == sum(ends) + len(run["groups"])
    assert accounts["trained"] == fewest + len(again)


class Killed(BaseException):
    pass


class OfAUser:
    def __str__(self) -> str:
        return "what a user's module knows"


async def test_what_is_saved_can_be_read_by_who_knows_no_module_of_a_users() -> None:
    life = Life(random.Random(0), staleness=2, batch=2, members=2, failing=0.0)
    for step in range(2):
        await life.step(step)
    life.generator.trained(0)
    for group in life.generator.training[1]:
        for rollout in group.rollouts:
            rollout.metadata["theirs"] = [OfAUser()]
    taken = resume.snapshot(life.generator, life.source, next_index=next(life.index))
    kept = [rollout.metadata["theirs"] for group in taken.waiting for rollout in group.rollouts if rollout.metadata]
    assert ["what a user's module knows"] in kept
    assert b"OfAUser" not in pickle.dumps(taken.waiting)


@pytest.mark.parametrize("at", range(4))
async def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever between two changes of a file: the samples' two, the state's two."""
    without_ray(monkeypatch, resume)
    changes = itertools.count()

    def killing(change: Callable[..., Any]) -> Callable[..., Any]:
        def or_killed(*args: Any, **options: Any) -> Any:
            if next(changes) == at:
                raise Killed
            return change(*args, **options)

        return or_killed

    def life() -> Life:
        return Life(random.Random(at), staleness=2, batch=2, members=2, failing=0.0)

    async def until_killed() -> tuple[list[int], resume.Snapshot]:
        one = life()
        rows = [*await one.step(0), *await one.step(1)]
        one.generator.trained(1)
        taken = resume.snapshot(one.generator, one.source, next_index=next(one.index))
        await resume.save(str(tmp_path), 1, taken)
        await one.step(2)
        await one.step(3)  # which waits to be trained
        later = resume.snapshot(one.generator, one.source, next_index=next(one.index))
        with monkeypatch.context() as dying:
            dying.setattr(Path, "write_text", killing(Path.write_text))
            dying.setattr(Path, "replace", killing(Path.replace))
            dying.setattr(torch, "save", killing(torch.save))
            with pytest.raises(Killed):
                await resume.save(str(tmp_path), 2, later)
        return rows, taken

    async def goes_on(saved: resume.Snapshot) -> list[int]:
        again = life()
        assert await load(str(tmp_path), 1, again.generator, again.source) == saved.plain["next_rollout_index"]
        return [row for step in range(2, 5) for row in await again.step(step)]

    rows, saved = await until_killed()
    rows += await goes_on(saved)
    assert sorted(rows) == list(range(PROMPTS))


def prompts(folder: Path, words: list[str], **more: Any) -> Data:
    """A file of prompts, and how they are dealt."""
    (folder / "p.jsonl").write_text("".join(json.dumps({"input": word}) + "\n" for word in words))
    return Data(prompt_data=str(folder / "p.jsonl"), **more)


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["a", "b", "c", "d"], {}, "made with 3 prompts, --prompt-data now has 4"),
        (["a", "b"], {}, "made with 3 prompts, --prompt-data now has 2"),
        (["a", "c", "b"], {}, "holds other prompts than .* or in another order"),
        (["a", "b", "x"], {}, "holds other prompts"),
        (["a", "b", "c"], {"rollout_seed": 7}, "--rollout-seed 42 .* now it is 7"),
        (["a", "b", "c"], {"rollout_shuffle": False}, "--rollout-seed 42 .* now it is None"),
        (["a", "b", "c"], {"system_prompt": "be brief"}, None),
    ],
)
async def test_other_prompts_are_refused_before_anything_starts(
    words: list[str], more: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    source = open_source(prompts(tmp_path, ["a", "b", "c"], rollout_shuffle=True))
    saved = {"data": source.state(), "members": {}, "scheduler": {}, "next_rollout_index": 0}
    await resume.save(str(tmp_path), 3, resume.Snapshot(saved, []))
    data = prompts(tmp_path, words, **({"rollout_shuffle": True} | more))
    if message is None:
        resume.check(str(tmp_path), 3, data)
        return
    with pytest.raises(UserError, match=f"--load: .*{message}.*or --finetune"):
        resume.check(str(tmp_path), 3, data)


async def test_samples_that_wait_and_are_gone_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch, resume)
    data = prompts(tmp_path, ["a"])
    saved = {"data": open_source(data).state(), "members": {"5": {"0": 9}}, "scheduler": {}, "next_rollout_index": 10}
    await resume.save(str(tmp_path), 3, resume.Snapshot(saved, []))
    with pytest.raises(UserError, match=r"^--load .*: global_dataset_state_dict_3.pt is missing"):
        resume.check(str(tmp_path), 3, data)
    (tmp_path / "rollout" / "global_dataset_state_dict_3.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"^--load .*: global_dataset_state_dict_3.pt is damaged"):
        await load(str(tmp_path), 3, cast(Any, None), open_source(data))
