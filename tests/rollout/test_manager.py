from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import miles_lite.rollout.manager as manager_module
from miles_lite.config.options import parse
from miles_lite.errors import SetupError, UserError, Where
from miles_lite.rollout import resume
from miles_lite.rollout.agent_calls import Ran, Task
from miles_lite.rollout.agent_sampling import eval_sampling, request_kwargs, sampling
from miles_lite.rollout.failures import failure_of
from miles_lite.rollout.manager import RolloutManager
from miles_lite.sample import Group, Status
from miles_lite.stack.actors import Waiting
from miles_lite.stack.fleet import Fleet, FleetStatus
from tests.rollout.helpers import Here, make_rollout, make_sample, without_ray
from tests.waiting import until

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 1 --num-rollout 1".split()


def test_sampling_flags_reach_the_engines() -> None:
    given = "--rollout-temperature 0.7 --rollout-top-p 0.9 --rollout-top-k 5 --rollout-max-response-len 7".split()
    config, _ = parse([*NEEDED, *given, "--rollout-stop", "END", "STOP"])
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 7, "stop": ["END", "STOP"]}
    assert sampling(config.rollouts) == asked
    assert eval_sampling(config.rollouts, config.evaluation) == asked
    sent = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 7, "stop": ["END", "STOP"]}
    assert request_kwargs(sampling(config.rollouts)) == sent


def test_held_out_prompts_are_sampled_as_their_flags_say() -> None:
    given = "--eval-temperature 0 --eval-top-p 0.5 --eval-max-response-len 9".split()
    config, _ = parse([*NEEDED, *given])
    differ = {"temperature": 0.0, "top_p": 0.5, "max_new_tokens": 9}
    assert eval_sampling(config.rollouts, config.evaluation) == {**sampling(config.rollouts), **differ}


class Stands:
    """A `RestartingActor` whose actor is here, and is lost `losses` times."""

    def __init__(self, *, told: str = "", actor: Any = None, losses: int = 0) -> None:
        self.address, self.restarts = told, 0
        self._actor, self._losses = actor, losses

    async def serving(self) -> Any:
        return self._actor

    async def served_since(self, restarts: int, since: float) -> bool:
        return self._losses == 0 and restarts == self.restarts

    async def renewed(self, restarts: int) -> None:
        if restarts == self.restarts:
            self._losses -= 1
            self.restarts += 1


class NoEngines:
    """The fleet of a stack without any."""

    async def call(self, method: object) -> FleetStatus | dict[int, None]:
        if method is Fleet.loads:
            return {}
        assert method is Fleet.status
        return FleetStatus(engines=(), restarts=0, recoveries=())


class FakeStack:
    """Stands where engines, router and session servers would."""

    sessions = (Stands(told="http://one"), Stands(told="http://two"))
    session_urls = ("http://one", "http://two")
    routers, admin_key = SimpleNamespace(urls=[""], of=lambda index: ""), None
    waiting = Waiting(print, Path("logs"))
    fleet, engine_urls, failure = NoEngines(), (), None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def start(self) -> None: ...

    async def session_stats(self) -> dict[str, float]:
        return {}


def even(group: Group) -> bool:
    return group.index % 2 == 0


def drive(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *flags: str,
    raising: list[Exception] | None = None,
    losses: int = 0,
    broken: Exception | None = None,
) -> tuple[RolloutManager, list[int]]:
    """A started manager, and how many agents run at each time that one begins; every rollout is rewarded 1 or 0.

    The first rollouts to end end with `raising`; the first `losses` to fail find that their worker was lost. With
    `broken` that is what each breaks of."""
    monkeypatch.setattr(manager_module, "Stack", FakeStack)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"input": "a"}\n{"input": "b"}\n')
    needed = ["--hf-checkpoint", "m", "--prompt-data", str(prompts), "--rollout-batch-size", "2", "--num-rollout", "1"]
    needed += ["--keep-trajectories", "0"]
    config, _ = parse([*needed, "--run-dir", str(tmp_path / "run"), *flags])
    manager = RolloutManager(config, None)  # type: ignore[arg-type]
    running, seen = [0], []

    async def run(task: Task) -> Ran:
        running[0] += 1
        seen.append(running[0])
        await asyncio.sleep(0)
        running[0] -= 1
        if raising:
            raise raising.pop()
        done = make_rollout(task.rollout_index, task.group_index, make_sample(4, 2), status=Status.COMPLETED)
        done.reward, done.started_at, done.finished_at = float(task.rollout_index % 2), 1.0, 2.0
        if broken is not None:
            failure = failure_of(broken, at=Where.AGENT)
            done.fail(failure.where, failure.why)
        return done, list(done.fetch()), b""

    async def start_workers() -> None:
        standing: Any = Stands(actor=Here(run), losses=losses)
        manager._workers += [standing] * config.rollouts.num_agent_workers

    monkeypatch.setattr(manager, "_start_workers", start_workers)
    (tmp_path / "run").mkdir()
    return manager, seen


async def test_every_held_out_prompt_runs_as_often_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"input": "x"}\n' * 3)
    flags = ["--eval-prompt-data", "held", str(held), "--n-samples-per-eval-prompt", "4"]
    manager, seen = drive(monkeypatch, tmp_path, *flags)

    assert (await manager.start()).eval_rollouts == 12
    assert (await manager.eval())[0]["eval/held"] == 0.5
    assert len(seen) == 12


@pytest.mark.parametrize(("workers", "each"), [(1, 3), (2, 1), (2, 2)])
async def test_agents_at_once_are_bounded(
    workers: int, each: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = ["--num-agent-workers", str(workers), "--agent-concurrency", str(each), "--n-samples-per-prompt", "8"]
    manager, seen = drive(monkeypatch, tmp_path, *flags)

    await manager.start()
    await manager.generate(0)
    assert max(seen) == workers * each


async def test_the_filter_and_pass_rates_are_those_of_the_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = f"{Path(__file__)}:even"
    flags = ["--dynamic-sampling-filter-path", hook, "--log-passrate", "--n-samples-per-prompt", "2"]
    manager, _ = drive(monkeypatch, tmp_path, *flags)

    await manager.start()
    metrics = (await manager.generate(0)).metrics
    assert any(name.startswith("rollout/dynamic_filter/drop_") for name in metrics)
    assert any(name.startswith("passrate/") for name in metrics)


async def test_rollouts_run_ahead_and_their_age_is_a_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second `--num-rollout` wins."""
    flags = ["--max-weight-staleness", "1", "--num-rollout", "3", "--n-samples-per-prompt", "2"]
    manager, seen = drive(monkeypatch, tmp_path, *flags)

    await manager.start()
    metrics = []
    for step in range(3):
        metrics.append((await manager.generate(step)).metrics)
        begun = 4 * min(3, step + 2)
        while len(seen) < begun:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert len(seen) == begun
    first, *_, last = metrics
    assert first["rollout/fully_async/max_staleness"] == 0.0
    assert last["rollout/fully_async/staleness_bound"] == 1.0
    assert last["rollout/fully_async/queue_size"] == 0.0
    assert {name.removeprefix("rollout/fully_async/") for name in last if "fully_async" in name} == {
        *("avg_staleness", "max_staleness", "avg_staleness_queued", "avg_staleness_in_flight"),
        *("queue_size", "in_flight", "staleness_bound"),
    }


async def test_a_save_that_its_caller_gave_up_is_not_in_the_way_of_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C while a checkpoint is written: the first save goes on, and another of the same step comes."""
    without_ray(monkeypatch, resume)
    monkeypatch.setattr(ray, "get", lambda ref: ref.result() if isinstance(ref, asyncio.Future) else ref)
    flags = ["--max-weight-staleness", "2", "--use-rollout-logprobs", "--num-rollout", "4"]

    async def run(manager: RolloutManager, *, steps: range) -> None:
        await manager.start()
        if steps.start:
            await manager.load(str(tmp_path), steps.start - 1)
        for step in steps:
            assert len((await manager.generate(step)).groups) == 2
        await asyncio.sleep(0.1)  # some wait to be trained
        saves = [asyncio.create_task(manager.save(str(tmp_path), steps[-1])) for _ in range(3)]
        await asyncio.gather(*saves)

    for steps in (range(2), range(2, 4)):
        (tmp_path / str(steps.start)).mkdir()
        await run(drive(monkeypatch, tmp_path / str(steps.start), *flags)[0], steps=steps)
    assert list((tmp_path / "rollout").glob("*.draft")) == []


@pytest.mark.parametrize("staleness", [0, 1])
async def test_new_weights_let_rollouts_go_on_at_once_where_steps_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, staleness: int
) -> None:
    flags = ["--n-samples-per-prompt", "1", "--max-weight-staleness", str(staleness), "--num-rollout", "4"]
    manager, seen = drive(monkeypatch, tmp_path, *flags)

    await manager.start()
    await manager.generate(0)
    before, after = (2, 2) if staleness == 0 else (4, 6)
    await until(lambda: len(seen) >= before, "the first to begin")
    await asyncio.sleep(0.05)
    assert len(seen) == before
    await manager.updated(1)
    await until(lambda: len(seen) >= after, "the next to begin")
    await asyncio.sleep(0.05)
    assert len(seen) == after


async def test_a_rollout_that_lost_its_worker_runs_again_and_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    died: list[Exception] = [ray.exceptions.ActorDiedError(), ray.exceptions.ActorUnavailableError("gone", None)]
    manager, seen = drive(monkeypatch, tmp_path, "--n-samples-per-prompt", "2", raising=died, losses=1)

    await manager.start()
    await manager.generate(0)
    accounts = await manager.accounts()
    assert len(seen) == 4 + 2
    assert (accounts.started, accounts.trained, accounts.rollouts_failed) == (2, 2, 0)
    assert accounts.rollouts_started == 4


async def test_a_rollout_that_ends_its_worker_each_time_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    died: list[Exception] = [ray.exceptions.ActorDiedError() for _ in range(manager_module.ATTEMPTS)]
    one = ["--n-samples-per-prompt", "2", "--agent-concurrency", "1"]
    manager, seen = drive(monkeypatch, tmp_path, *one, raising=died, losses=100)

    await manager.start()
    await manager.generate(0)
    accounts = await manager.accounts()
    assert len(seen) == 4 - 1 + manager_module.ATTEMPTS
    assert (accounts.trained, accounts.failures) == (2, {"agent": 1})


@pytest.mark.parametrize("held_out", [False, True])
async def test_the_first_rollout_that_meets_a_mistake_of_the_users_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held_out: bool
) -> None:
    """What a failed rollout says of its machine holds of all others: nothing is tried again."""
    flags = ["--n-samples-per-prompt", "2", "--eval-prompt-data", "held", str(tmp_path / "prompts.jsonl")]
    manager, seen = drive(monkeypatch, tmp_path, *flags, broken=SetupError("no image nope\n  Pull it."))

    await manager.start()
    with pytest.raises(UserError, match=r"a rollout cannot be run.*no image nope\n  Pull it"):
        await (manager.eval() if held_out else manager.generate(0))
    assert len(seen) <= 4


async def test_a_result_that_cannot_be_brought_over_fails_its_rollout_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost: list[Exception] = [ray.exceptions.RaySystemError("No module named 'agents'")]
    manager, _ = drive(monkeypatch, tmp_path, "--n-samples-per-prompt", "2", raising=lost)

    await manager.start()
    await manager.generate(0)
    accounts = await manager.accounts()
    assert (accounts.trained, accounts.failures) == (2, {"agent": 1})


async def test_what_failed_is_on_disk_though_the_failures_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost: list[Exception] = [ray.exceptions.RaySystemError("No module named 'agents'") for _ in range(100)]
    flags = ["--n-samples-per-prompt", "2", "--rollout-batch-size", "1"]
    manager, _ = drive(monkeypatch, tmp_path, *flags, raising=lost)

    await manager.start()
    with pytest.raises(UserError, match="each of the 2 prompts failed"):
        await manager.generate(0)
    failed = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert len(failed) == len({each["rollout"] for each in failed}) == 100 - len(lost)
    assert {(each["rollout/step"], each["where"]) for each in failed} == {(0, "agent")}
    assert {each["prompt_row"] for each in failed} == {1, 2}
