"""One rollout step: start prompt groups, run their agents, filter, refill, and account for every prompt.

Invariant, per run: prompts started = trained + filtered + failed + unused + in flight, and in flight is 0 whenever no
step is running. A failed rollout has no reward, whatever `--none-reward-policy` makes of one that ended without any.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from miles_lite.config.rollouts import Rollouts
from miles_lite.errors import UserError
from miles_lite.hooks import GroupFilter
from miles_lite.rollout.filters import verdict
from miles_lite.rollout.prompts import Prompt
from miles_lite.sample import Group, Rollout

log = logging.getLogger(__name__)

REFILL_FACTOR = 20
"""A step gives up after starting this many times the groups it needs: filters that keep nothing must not spin."""

RunRollout = Callable[[Prompt, int], Awaitable[Rollout]]
JudgeGroup = Callable[[Group, Prompt], Awaitable[None]]
"""Gives the rollouts of a group their rewards."""


@dataclass
class Accounts:
    """Where every prompt group and rollout of the run went; part of the checkpoint."""

    started: int = 0
    trained: int = 0
    filtered: int = 0
    failed: int = 0
    unused: int = 0
    rollouts_started: int = 0
    rollouts_failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        return self.started - self.trained - self.filtered - self.failed - self.unused


@dataclass
class Step:
    """What one step produced. `groups` are to be trained; `finished` also holds those that were dropped."""

    groups: list[Group] = field(default_factory=list)
    finished: list[Group] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    started: int = 0
    rollouts_done: int = 0


class Generator:
    """Runs steps over a stream of prompts. `run_rollout(prompt, group_index)` executes one agent."""

    def __init__(
        self,
        options: Rollouts,
        *,
        take_prompt: Callable[[], Prompt],
        run_rollout: RunRollout,
        filter_function: GroupFilter | None,
        accounts: Accounts,
        judge: JudgeGroup | None = None,
    ) -> None:
        self._options = options
        self._take_prompt = take_prompt
        self._run_rollout = run_rollout
        self._filter = filter_function
        self._judge = judge
        self.accounts = accounts
        self.step = Step()

    async def run(self, check: Callable[[], None]) -> Step:
        """Collect `rollout_batch_size` groups worth training. `check` is called while waiting and may raise."""
        self.step = step = Step()
        need = self._options.rollout_batch_size
        at_once = self._options.over_sampling_batch_size or need
        pending: set[asyncio.Task[Group]] = set()
        try:
            while len(step.groups) < need:
                check()
                while len(pending) < at_once - len(step.groups) and step.started < REFILL_FACTOR * need:
                    pending.add(self._start_group(step))
                if not pending:
                    self._gave_up(step)
                    break
                done, pending = await asyncio.wait(pending, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    group = task.result()
                    if not await self._settle(step, group):
                        for rollout in group.rollouts:
                            rollout.stored = None
        finally:
            await self._abandon(pending)
        step.groups.sort(key=lambda group: group.index)
        return step

    def _start_group(self, step: Step) -> asyncio.Task[Group]:
        """Take a prompt, book it as started and run its agents."""
        prompt = self._take_prompt()
        group = Group(index=self.accounts.started, prompt={"row": prompt.row, "label": prompt.label})
        self.accounts.started += 1
        self.accounts.rollouts_started += self._options.n_samples_per_prompt
        step.started += 1
        return asyncio.create_task(self._run_group(step, group, prompt))

    async def _run_group(self, step: Step, group: Group, prompt: Prompt) -> Group:
        async def one() -> Rollout:
            rollout = await self._run_rollout(prompt, group.index)
            step.rollouts_done += 1
            return rollout

        group.rollouts = list(await asyncio.gather(*(one() for _ in range(self._options.n_samples_per_prompt))))
        if self._judge is not None:
            await self._judge(group, prompt)
        return group

    async def _settle(self, step: Step, group: Group) -> bool:
        """Decide what becomes of a finished group and book it; whether it is trained."""
        step.finished.append(group)
        self._apply_reward_policy(group)
        failed = [rollout for rollout in group.rollouts if not rollout.trainable]
        self.accounts.rollouts_failed += sum(rollout.failure is not None for rollout in failed)
        reasons = Counter(str(rollout.failure.where) if rollout.failure else "none_reward" for rollout in failed)
        for reason, count in reasons.items():
            self.accounts.failures[reason] = self.accounts.failures.get(reason, 0) + count
        if len(failed) == len(group.rollouts):
            self.accounts.failed += 1
            step.dropped[f"failed_{reasons.most_common(1)[0][0]}"] += 1
            return False
        kept = await verdict(group, self._filter)
        if not kept.keep:
            self.accounts.filtered += 1
            step.dropped[kept.reason or "filter"] += 1
        elif len(step.groups) == self._options.rollout_batch_size:
            self.accounts.unused += 1
        else:
            self.accounts.trained += 1
            step.groups.append(group)
            return True
        return False

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

    def _gave_up(self, step: Step) -> None:
        what = ", ".join(f"{reason} x{count}" for reason, count in step.dropped.most_common()) or "nothing dropped"
        message = (
            f"{len(step.groups)} of {self._options.rollout_batch_size} groups after starting {step.started} "
            f"({REFILL_FACTOR}x the batch): {what}."
        )
        if not step.groups:
            failures = [rollout.failure for group in step.finished for rollout in group.rollouts if rollout.failure]
            first = f"\n  first failure: {failures[0]}" if failures else ""
            raise UserError(f"a rollout kept no group to train on: {message}{first}")
        log.warning("training on fewer groups than asked: %s", message)

    async def _abandon(self, pending: set[asyncio.Task[Group]]) -> None:
        """End what is still running; those groups are unused."""
        for task in pending:
            task.cancel()
        for outcome in await asyncio.gather(*pending, return_exceptions=True):
            self.accounts.unused += 1
            if isinstance(outcome, Exception):
                log.warning("a group that was no longer needed ended with %s", outcome)
