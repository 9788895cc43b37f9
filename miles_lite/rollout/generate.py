"""Groups of rollouts as a scheduler wants them: runs agents, judges groups, and gives the trainer its batches.

Invariant: decisions are `miles_lite.scheduler`'s alone; here they are carried out. Rollouts go on between batches as
far as the schedule lets them: with --max-weight-staleness 0 none does. A failed rollout has no reward, whatever
`--none-reward-policy` makes of one that ended without any.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ParamSpec

from miles_lite.config.rollouts import Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.errors import UserError
from miles_lite.hooks import GroupFilter
from miles_lite.process.patience import at_most
from miles_lite.rollout.failures import broke, lost
from miles_lite.rollout.filters import verdict
from miles_lite.rollout.prompts import Prompt, Source
from miles_lite.sample import Group, Rollout
from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.accounts import Accounts
from miles_lite.scheduler.protocol import AttemptId, Command, End, Event
from miles_lite.scheduler.schedule import Schedule, depth_of
from miles_lite.scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)

RunRollout = Callable[[Prompt, int], Awaitable[Rollout]]
JudgeGroup = Callable[[Group, Prompt], Awaitable[None]]
"""Gives the rollouts of a group their rewards."""
Members = dict[int, dict[int, Rollout]]
"""Of groups, the rollouts that have ended, by member."""
P = ParamSpec("P")


@dataclass
class Step:
    """What came of one step. `groups` are to be trained; `finished` also holds those that were dropped since the last
    one; `reasons` says why, by group; the prompts of `quarantined` among them are not dealt again; `replaced` are
    rollouts that failed and were run again, each in a group of its own."""

    groups: list[Group] = field(default_factory=list)
    finished: list[Group] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    quarantined: list[Group] = field(default_factory=list)
    replaced: list[Group] = field(default_factory=list)
    started: int = 0
    rollouts_done: int = 0

    @property
    def dropped(self) -> Counter[str]:
        """How many groups were dropped for which reason."""
        return Counter(self.reasons.values())

    @property
    def replaced_by_where(self) -> Counter[str]:
        """Of those that failed and were run again, how many failed where."""
        return Counter(broke(rollout)[0] for group in self.replaced for rollout in group.rollouts)


class Generator:
    """Runs what a scheduler starts. `run_rollout(prompt, group_index)` executes one agent."""

    def __init__(
        self,
        options: Rollouts,
        schedule: Schedule,
        *,
        source: Source,
        run_rollout: RunRollout,
        filter_function: GroupFilter | None,
        accounts: Accounts,
        judge: JudgeGroup | None = None,
        seen: Callable[[int, float], None] | None = None,
    ) -> None:
        """`seen` is told of each group that was judged the number of its prompt and its mean reward."""
        self._options, self._source = options, source
        self._run_rollout, self._filter = run_rollout, filter_function
        self._together, self._seen = judge, seen
        self.accounts = accounts
        self.scheduler = Scheduler(schedule, source, accounts=accounts)
        self.step = Step()
        self.held: dict[int, Group] = {}
        """Groups that are open, with what has come of them."""
        self.members: Members = {}
        """Of each, the rollouts that have ended, by member."""
        self._prompts: dict[int, Prompt] = {}
        """Of each that was asked for, what its agents are given: read once."""
        self.training: dict[int, list[Group]] = {}
        """Batches that were given and may have to be given again; none where nothing is kept between steps."""
        self._tasks: dict[AttemptId, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        """What judges groups, and rollouts that are cancelled."""
        self._given: Step | None = None
        self._error: BaseException | None = None
        self._woken = asyncio.Event()
        self._resumed: m.Resumed | None = None

    # ---- what its owner says ---------------------------------------------------------------------------------------

    async def run(self, check: Callable[[], None]) -> Step:
        """The next `rollout_batch_size` groups worth training. `check` is called while waiting and may raise; whatever
        does ends all rollouts. Raises UserError where no such groups can be had."""
        try:
            self._dispatch(m.Wanted())
            while self._given is None:
                check()
                if self._error is not None:
                    raise self._error
                self._woken.clear()
                await at_most(1.0, self._woken.wait())
        except BaseException:
            await self.close()
            raise
        step, self._given = self._given, None
        if self.scheduler.schedule.gives_up_extra:
            await asyncio.gather(*self._others, return_exceptions=True)
        return step

    def updated(self, version: int) -> None:
        """Every engine serves `version`, which is trained on all batches before it."""
        if self._resumed is not None and self._resumed.step <= version:
            resumed, self._resumed = self._resumed, None
            self._dispatch(resumed)
        self.trained(version - 1)
        self._dispatch(m.Updated(version))

    def trained(self, step: int) -> None:
        """The trainer will not ask for the batch of `step` again."""
        self._dispatch(m.Trained(step))
        for done in [done for done in self.training if done <= step]:
            del self.training[done]

    def resize(self, rollouts: int) -> None:
        """So many rollouts may run at once."""
        self._dispatch(m.Capacity(rollouts))

    def resume(self, step: int, state: dict[str, Any], kept: Mapping[int, Group], members: Members) -> None:
        """Become what `state` of its scheduler was taken of, `step` batches having been trained; of the groups in
        `kept` those rollouts are left that `members` names. Nothing starts before the engines have the weights of
        `step` (`updated`)."""
        self.scheduler.restore(state)
        self.held, self.members = dict(kept), members
        self._resumed = m.Resumed(step, frozenset(kept))

    async def close(self) -> None:
        """End all rollouts; those groups are unused."""
        self._dispatch(m.Closed())
        for task in self._others:
            task.cancel()
        for outcome in await asyncio.gather(*self._others, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("a group that was no longer needed ended with %s", outcome)

    # ---- what the scheduler says -----------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        for command in self.scheduler.on(event, time.monotonic()):
            self._execute(command)

    def _execute(self, command: Command) -> None:
        match command:
            case m.Start(who, prompt):
                self._hold(who.group, prompt)
                dealt = self._prompt(who.group, prompt)
                self._tasks[who] = asyncio.create_task(self._guarded(self._run, who, dealt))
            case m.Cancel(who):
                if who in self._tasks:  # one that ended after a Stop was not heard of
                    self._aside(self._tasks.pop(who)).cancel()
            case m.Judge(group, _, prompt):
                self._aside(asyncio.create_task(self._guarded(self._judge, group, prompt)))
            case m.Renew(group, judged):
                self._renew(group, judged=judged)
            case m.Release(group, end, reason):
                self._release(group, end, reason)
            case m.Deliver(step, groups, short):
                self._deliver(step, groups)
                if short:
                    log.warning("training on fewer groups than asked: %s", short)
            case m.Stop(reason):
                self._fail(UserError(f"{reason}{self._first_failure()}"))

    def _hold(self, group: int, prompt: int) -> None:
        if group not in self.held:
            dealt = self._prompt(group, prompt)
            self.held[group] = Group(index=group, prompt={"row": dealt.row, "label": dealt.label})
            self.members.setdefault(group, {})
            self.step.started += 1

    def _prompt(self, group: int, number: int) -> Prompt:
        """The source's prompt `number`, which is that of an open group."""
        if group not in self._prompts:
            self._prompts[group] = self._source.prompts[number]
        return self._prompts[group]

    def _deliver(self, step: int, groups: tuple[int, ...]) -> None:
        given, self.step = self.step, Step()
        given.groups = [self._let_go(group) for group in groups]
        given.finished += given.groups
        if self.scheduler.schedule.max_staleness:
            self.training[step] = given.groups
        self._given = given
        self._woken.set()

    def _renew(self, ordinal: int, *, judged: bool) -> None:
        """Of a group that was kept, what came of its rollouts is not used."""
        for rollout in (members := self.members.get(ordinal, {})).values():
            rollout.stored = None
        if judged:
            self._book(members.values(), -1)
        members.clear()

    def _release(self, ordinal: int, end: End, reason: str) -> None:
        """A group that is not trained: its samples leave the store."""
        if ordinal not in self.held:
            return
        group = self._let_go(ordinal)
        if end is not End.UNUSED or len(group.rollouts) == self._options.n_samples_per_prompt:
            self.step.finished.append(group)
        if end is not End.UNUSED:
            self.step.reasons[ordinal] = reason
        if end is End.QUARANTINED:
            self.step.quarantined.append(group)
        for rollout in group.rollouts:
            rollout.stored = None

    def _let_go(self, ordinal: int) -> Group:
        group, members = self.held.pop(ordinal), self.members.pop(ordinal)
        self._prompts.pop(ordinal, None)
        group.rollouts = [members[member] for member in sorted(members)]
        return group

    # ---- what is done ----------------------------------------------------------------------------------------------

    async def _run(self, who: AttemptId, prompt: Prompt) -> None:
        rollout = await self._run_rollout(prompt, who.group)
        del self._tasks[who]
        self.step.rollouts_done += 1
        rollout.ended_version = self.scheduler.version
        members = self.members[who.group]
        if (before := members.get(who.member)) is not None:
            before.stored = None
            self.step.replaced.append(dataclasses.replace(self.held[who.group], rollouts=[before]))
        members[who.member] = rollout
        where, why, again = broke(rollout)
        self._dispatch(m.Finished(who, rollout.trained_tokens, where, why, again))

    async def _judge(self, ordinal: int, prompt: int) -> None:
        """Decide what becomes of a group whose rollouts have ended, unless it was given up meanwhile, and book them."""
        if ordinal not in self.held:
            return
        members = self.members[ordinal]
        group = dataclasses.replace(self.held[ordinal], rollouts=[members[member] for member in sorted(members)])
        if self._together is not None:
            await self._together(group, self._prompt(ordinal, prompt))
        self._apply_reward_policy(group)
        if self._seen is not None and (rewards := [reward for reward in group.rewards if reward is not None]):
            self._seen(prompt, fmean(rewards))
        reasons = lost(group.rollouts)
        if reasons.total() == len(group.rollouts):
            judged = m.Judged(ordinal, End.FAILED, f"failed_{reasons.most_common(1)[0][0]}")
        else:
            kept = await verdict(group, self._filter)
            judged = m.Judged(ordinal, None if kept.keep else End.FILTERED, kept.reason or "filter")
        if ordinal in self.held:
            self._book(group.rollouts, 1)
            self._dispatch(judged)

    def _book(self, rollouts: Collection[Rollout], sign: int) -> None:
        """Count those of a judged group that have no answer; or no longer, with -1."""
        self.accounts.rollouts_failed += sign * sum(rollout.failure is not None for rollout in rollouts)
        for reason, count in lost(rollouts).items():
            self.accounts.failures[reason] = self.accounts.failures.get(reason, 0) + sign * count

    def _apply_reward_policy(self, group: Group) -> None:
        policy = self._options.none_reward_policy
        for rollout in group.rollouts:
            if rollout.reward is not None or policy == "drop":
                continue
            if policy == "error":
                why = rollout.failure or "the agent and reward functions gave none"
                raise UserError(
                    f"rollout {rollout.index} has no reward ({why}) and --none-reward-policy is error. "
                    "Use drop or zero to train without it."
                )
            if rollout.failure is None:
                rollout.reward = 0.0

    def _first_failure(self) -> str:
        failures = [one.failure for group in self.step.finished for one in group.rollouts if one.failure]
        return f"\n  first failure: {failures[0]}" if failures else ""

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def _aside(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Wait for it at the end, not before."""
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    async def _guarded(self, work: Callable[P, Awaitable[None]], *args: P.args, **options: P.kwargs) -> None:
        """What goes wrong in it ends the step, or the next one."""
        try:
            await work(*args, **options)
        except Exception as error:  # noqa: BLE001 - `run` raises it, in the task that waits for the batch
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._woken.set()


def schedule_of(
    options: Rollouts, scheduling: Scheduling | None = None, *, steps: int = 0, capacity: int = 0
) -> Schedule:
    """What the flags say. `steps`: batches of the run, 0 where nobody knows; `capacity`: rollouts that run at once at
    first, where the flags leave that to the engines."""
    given, size = scheduling or Scheduling(), options.rollout_batch_size
    return Schedule(
        groups_per_step=size,
        rollouts_per_group=options.n_samples_per_prompt,
        max_staleness=given.staleness,
        depth=depth_of(given.staleness, given.pipeline_depth),
        extra=max(0, (options.over_sampling_batch_size or size) - size),
        capacity=capacity or given.most_at_once(options.num_agent_workers * options.agent_concurrency),
        sample_retries=given.max_sample_retries,
        quarantine_after=given.quarantine_after,
        failure_share=given.max_failure_share,
        order=given.rollout_order,
        granularity=given.rollout_submission_granularity,
        reuse_unused=given.async_unused_samples_handler == "retry",
        steps=steps,
    )
