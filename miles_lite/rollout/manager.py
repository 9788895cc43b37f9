"""RolloutManager: the Ray actor that owns the stack and the agents and turns prompts into groups of rollouts. Its
engines are their fleet's to look after, an actor that it starts and the driver commands.

Invariant: it holds records only; the arrays of samples lie in Ray's object store, owned by its process, so that an
agent worker's death loses none. `generate` accounts for every prompt of the step; what it stopped with (`save`) is what
it continues with (`load`). A rollout that lost its worker or its session server runs again; whatever else becomes of
one is data.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial

from miles_lite.config.options import Config
from miles_lite.config.yaml_files import plugin_args
from miles_lite.plugins import field_args
from miles_lite.process.addresses import actor_label
from miles_lite.process.remote import Remote
from miles_lite.process.uncollected import begins_to_serve
from miles_lite.rollout.agent_calls import Lines, Task
from miles_lite.rollout.agent_sampling import Sampling, eval_sampling, sampling
from miles_lite.rollout.agent_worker import AgentWorker, judge_together
from miles_lite.rollout.answers import Evaluated, Generated, Progress, Started
from miles_lite.rollout.capacity import Capacity, concurrency_of
from miles_lite.rollout.curriculum import curriculum_of
from miles_lite.rollout.failures import FAILED, QUARANTINED, note_failures, note_quarantined, refuse_setup
from miles_lite.rollout.filters import load_filter
from miles_lite.rollout.generate import Generator, schedule_of
from miles_lite.rollout.given_rollouts import FieldDataSource, GivenRollouts, evaluated
from miles_lite.rollout.loads import Loads
from miles_lite.rollout.metrics import eval_metrics, staleness_metrics, step_metrics
from miles_lite.rollout.prompt_lengths import fitting
from miles_lite.rollout.prompts import Prompt, Source, load_held_out, open_source
from miles_lite.rollout.recorded import Credited, Recorder
from miles_lite.rollout.resume import Snapshot, load, save, snapshot
from miles_lite.sample import Failure, Group, Rollout, Status
from miles_lite.scheduler.accounts import Accounts
from miles_lite.session.actor import SessionActor
from miles_lite.stack.actors import named_actor, restarted
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import Layout
from miles_lite.stack.restarting import RestartingActor
from miles_lite.stack.stack import Stack

WORKER_START_TIMEOUT = 120.0
ATTEMPTS = 4
"""How often a rollout is run that loses its worker or its session server each time: it may be what ends them."""


class RolloutManager:
    """Async Ray actor. `start` first; then `generate`, `updated`, `eval`, `save`, `load`, `status`, `stop`."""

    def __init__(self, config: Config, layout: Layout, known_key: str | None = None) -> None:
        """`known_key`: the admin key that the driver's environment names."""
        self._config = config
        self._stack = Stack(config, layout, updates=config.updates, known_key=known_key)
        self._workers: list[RestartingActor[AgentWorker]] = []
        self._lines = Lines()
        self._accounts = Accounts()
        self._rollouts = 0
        self._before_step: tuple[int, Snapshot] | None = None
        self._load, self._again = Loads(), 0
        self._complete: float | None = None
        self._note = partial(note_failures, config.run_dir / FAILED)
        self._recorder = Recorder(config.run_dir, keep=config.logging.keep_trajectories)
        self._looking: asyncio.Task[None] | None = None
        self._saving = asyncio.Lock()
        self._room = asyncio.Semaphore(config.rollouts.num_agent_workers * config.rollouts.agent_concurrency)

    def __repr__(self) -> str:
        return actor_label("RolloutManager")

    async def start(self) -> Started:
        """Read the data, start the stack and the agent workers."""
        field_args.use(self._config, **plugin_args(self._config.files.custom_config_path))
        source = open_source(self._config.data, fits=fitting(self._config))
        self._curriculum = curriculum_of(source, self._config.data)
        self._source: Source = self._curriculum or source
        self._eval_sets = {
            name: load_held_out(path, self._config, name) for name, path in self._config.evaluation.datasets.items()
        }
        options = self._config.rollouts
        self._found = concurrency_of(self._config)
        per_epoch = max(1, len(self._source) // options.rollout_batch_size)
        steps = options.num_rollout or per_epoch * (options.num_epoch or 1)
        capacity = self._found.rollouts if self._found else 0
        self._generator = Generator(
            options,
            schedule_of(options, self._config.scheduling, steps=steps, capacity=capacity),
            source=self._source,
            run_rollout=self._run_dealt,
            filter_function=load_filter(self._config.rollouts.dynamic_sampling_filter_path),
            accounts=self._accounts,
            judge=self._judge_dealt if self._config.rewards.judges_groups else None,
            seen=self._curriculum.judged if self._curriculum else None,
        )
        self._steps = self._given_rollouts() or self._generator
        await asyncio.gather(self._stack.start(), self._start_workers())
        self._looking = asyncio.create_task(self._capacity().poll())
        begins_to_serve()
        evaluation = self._config.evaluation
        return Started(
            router_urls=self._stack.routers.urls,
            session_urls=self._stack.session_urls,
            engine_urls=self._stack.engine_urls,
            fleet=self._stack.fleet,
            eval_rollouts=sum(len(prompts) * evaluation.samples(name) for name, prompts in self._eval_sets.items()),
            rollouts_per_epoch=per_epoch,
        )

    def _capacity(self) -> Capacity:
        return Capacity(
            loads=lambda: self._stack.fleet.call(Fleet.loads),
            record=self._recorder.fleet.record,
            running=lambda: self._generator.scheduler.running,
            resize=self._generator.resize,
            notify=lambda line: self._stack.alarm(line),
            found=self._found,
        )

    def _given_rollouts(self) -> GivenRollouts | None:
        path = self._config.rollouts.rollout_function_path
        if path is None:
            return None
        self._source = source = FieldDataSource(self._source, self._config.rollouts.n_samples_per_prompt)
        return GivenRollouts(
            path,
            self._config.rollouts,
            source=source,
            key=self._config.rewards.key(evaluation=False),
            router_url=lambda: self._stack.routers.of(0),
            accounts=self._accounts,
        )

    async def generate(self, rollout_id: int) -> Generated:
        """Run one step: collect groups, and compute metrics."""
        began, self._recorder.fleet.step = time.time(), rollout_id
        if not self._overlaps:
            self._before_step = (rollout_id, self._snapshot())
        self._steps.updated(rollout_id)
        step = await self._steps.run(self._check_alive)
        for group in step.finished if isinstance(self._steps, GivenRollouts) else ():
            self._note(rollout_id, group.prompt.get("row"), group.rollouts)
        for line in note_quarantined(self._config.run_dir / QUARANTINED, rollout_id, step.quarantined):
            self._stack.alarm(line)
        kept = await self._recorder.record(rollout_id, step)
        metrics = step_metrics(step, overlong=self._config.overlong, passrate=self._config.logging.log_passrate)
        if self._overlaps:
            metrics |= staleness_metrics(step.groups, rollout_id)
            metrics["rollout/fully_async/staleness_bound"] = float(self._config.scheduling.staleness)
            metrics["rollout/fully_async/queue_size"] = float(self._generator.scheduler.ready)
            metrics["rollout/fully_async/in_flight"] = float(self._generator.scheduler.running)
        metrics |= {f"session/{name}": value for name, value in (await self._stack.session_stats()).items()}
        if self._config.data.overlong_prompts == "skip":
            metrics["rollout/prompts_skipped"] = float(self._source.skipped)
        if self._curriculum is not None:
            metrics |= self._curriculum.metrics()
        metrics["rollout/concurrency"] = float(self._generator.scheduler.capacity)
        metrics["rollout/engine_restarts"] = float((await self._stack.fleet.call(Fleet.status)).restarts)
        metrics |= self._recorder.fleet.metrics()
        before, self._complete = self._complete if self._overlaps else None, time.time()
        metrics["perf/rollout_time"] = self._complete - began
        tokens = sum(rollout.trained_tokens for group in step.finished for rollout in group.rollouts)
        metrics["perf/rollout_tok_per_s"] = tokens / (self._complete - (before or began))
        busy = [(rollout.started_at, rollout.finished_at) for group in step.finished for rollout in group.rollouts]
        return Generated(groups=step.groups, metrics=metrics, busy=busy, kept=kept)

    async def busy(self) -> list[tuple[float, float]]:
        """When some agent ran, since this was asked last."""
        return self._load.busy()

    async def credit(self, rollout_id: int, advantages: Mapping[int, float], told: Credited) -> None:
        """What training made of the rollouts of a step, by number, and of the tokens of those that are kept."""
        self._recorder.credit(rollout_id, advantages, told)

    async def eval(self) -> Evaluated:
        """Run the held-out sets on the current weights."""
        began, options = time.time(), self._config.evaluation
        metrics: dict[str, float] = {}
        busy: list[tuple[float, float]] = []
        if options.eval_function_path is not None:
            metrics |= await evaluated(options.eval_function_path, self._accounts.trained)
        else:
            for name, prompts in self._eval_sets.items():
                groups = await self._run_set(name, prompts)
                metrics |= eval_metrics(name, groups)
                busy += [(one.started_at, one.finished_at) for group in groups for one in group.rollouts]
        return metrics | {"eval/duration_seconds": time.time() - began}, busy

    async def _run_set(self, name: str, prompts: Sequence[Prompt]) -> list[Group]:
        """Each prompt of a held-out set, as often as is asked for."""
        options = self._config.evaluation
        count, sampled = options.samples(name), eval_sampling(self._config.rollouts, options, name)
        groups = [Group(index=index, prompt={"row": prompt.row}) for index, prompt in enumerate(prompts)]
        runs = [
            self._run_held_out(prompt, group.index, sampled)
            for prompt, group in zip(prompts, groups, strict=True)
            for _ in range(count)
        ]
        rollouts = await asyncio.gather(*runs)
        for at, group in enumerate(groups):
            group.rollouts = list(rollouts[at * count : (at + 1) * count])
        if self._config.rewards.judges_groups:
            await asyncio.gather(*map(partial(self._judge, evaluation=True), groups, prompts))
        return groups

    async def updated(self, version: int) -> None:
        """Every engine serves `version`: where steps overlap, rollouts go on with it."""
        if self._overlaps:
            self._steps.updated(version)

    async def status(self) -> Progress:
        done, scheduler = self._generator.step.rollouts_done, self._generator.scheduler
        return Progress(
            groups_done=min(scheduler.ready, self._config.rollouts.rollout_batch_size),
            rollouts_done=done,
            rollouts_started=done + scheduler.running,
            again=self._again,
            oldest=time.monotonic() - (scheduler.oldest or time.monotonic()),
        )

    async def alarms(self) -> list[str]:
        """What a person must hear of the run's servers, so far."""
        return self._stack.alarms

    async def accounts(self) -> Accounts:
        """Where every prompt of the run went."""
        return self._accounts

    async def save(self, folder: str, rollout_id: int) -> None:
        """Write what follows the training of `rollout_id`.

        Where steps do not overlap, one that has begun since is not part of it: its prompts are dealt again after
        `load`. Where they do, what is under way is part of it, and a batch that was given since is given again.
        """
        self._steps.trained(rollout_id)
        async with self._saving:  # a save that its caller gave up goes on
            running, before = self._before_step or (None, None)
            taken = before if before is not None and running == rollout_id + 1 else self._snapshot()
            await save(folder, rollout_id, taken)

    def _snapshot(self) -> Snapshot:
        return snapshot(self._generator, self._source, next_index=self._rollouts)

    @property
    def _overlaps(self) -> bool:
        return self._config.scheduling.overlaps

    async def load(self, folder: str, rollout_id: int) -> None:
        """Continue from `save`. Raises UserError when the file is missing."""
        self._rollouts = await load(folder, rollout_id, self._generator, self._source)

    async def stop(self) -> None:
        """End agents, sessions, router and engines."""
        if self._looking is not None:
            self._looking.cancel()
        await self._recorder.close()
        await asyncio.gather(self._stack.stop(), *(worker.stop() for worker in self._workers))

    def _check_alive(self) -> None:
        if self._stack.failure is not None:
            raise self._stack.failure

    async def _start_workers(self) -> None:
        self._workers += map(self._worker, range(self._config.rollouts.num_agent_workers))
        await asyncio.gather(*(worker.start() for worker in self._workers))

    def _worker(self, index: int) -> RestartingActor[AgentWorker]:
        def make(restarts: int) -> Remote[AgentWorker]:
            name = restarted(f"agent-worker-{index}", restarts)
            return named_actor(AgentWorker, name)(index, self._config, self._stack.admin_key)

        return RestartingActor(
            f"agent worker {index}", make, start_seconds=WORKER_START_TIMEOUT, waiting=self._stack.waiting
        )

    async def _run_dealt(self, prompt: Prompt, group_index: int) -> Rollout:
        """One for training."""
        rollout = await self._run_rollout(prompt, group_index, sampling(self._config.rollouts))
        self._note(self._generator.scheduler.step, prompt.row, [rollout])
        return rollout

    async def _judge_dealt(self, group: Group, prompt: Prompt) -> None:
        judged = group.judged
        await self._judge(group, prompt)
        self._note(self._generator.scheduler.step, prompt.row, judged)

    def _least_loaded(self) -> tuple[RestartingActor[AgentWorker], RestartingActor[SessionActor]]:
        return self._load.least(self._workers), self._load.least(self._stack.sessions)

    async def _run_rollout(
        self, prompt: Prompt, group_index: int, sampling: Sampling, *, evaluation: bool = False
    ) -> Rollout:
        """Run one agent to an end that is its own. Raises UserError where none can be run."""
        asked = time.time()
        async with self._room:
            index, self._rollouts = self._rollouts, self._rollouts + 1
            told, url = self._recorder.keeps and not evaluation, self._stack.routers.of(index)
            for _ in range(ATTEMPTS):
                worker, session = self._least_loaded()
                used: dict[RestartingActor[AgentWorker] | RestartingActor[SessionActor], int]
                used, began = {worker: worker.restarts, session: session.restarts}, time.monotonic()
                task = Task(
                    index,
                    group_index,
                    prompt,
                    session.address,
                    sampling,
                    evaluation=evaluation,
                    keep_transcript=told,
                    router_url=url,
                )
                with self._load.on(used):
                    rollout = await self._lines.run(await worker.serving(), task)
                if rollout.status is not Status.FAILED:
                    break
                lost = [kept for kept in used if not await kept.served_since(used[kept], began)]
                if not lost:
                    break
                self._again += 1
                await asyncio.gather(*(kept.renewed(used[kept]) for kept in lost))
            refuse_setup(rollout.failure)
            rollout.spans.queue = max(0.0, rollout.started_at - asked)
            return rollout

    async def _judge(self, group: Group, prompt: Prompt, *, evaluation: bool = False) -> None:
        """Give the rollouts of a group that broke nowhere their rewards, together."""
        worker, session = self._least_loaded()
        url = self._stack.routers.of(group.index)
        task = Task(-1, group.index, prompt, session.address, {}, evaluation=evaluation, router_url=url)
        said = await judge_together(await worker.serving(), task, group.judged)
        for at, rollout in enumerate(group.judged):
            if isinstance(said, Failure):
                refuse_setup(said)
                rollout.fail(said.where, said.why)
            else:
                rollout.reward = said[at]

    async def _run_held_out(self, prompt: Prompt, group_index: int, sampling: Sampling) -> Rollout:
        """The same, and its samples leave the store: nobody trains them."""
        rollout = await self._run_rollout(prompt, group_index, sampling, evaluation=True)
        rollout.stored = None
        return rollout
