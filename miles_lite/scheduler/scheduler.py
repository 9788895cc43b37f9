"""The scheduler: `on(event, now) -> commands`. No clock, no I/O; a run and a simulation drive the same one.

Invariants, after every event:
- started = trained + filtered + failed + quarantined + unused + in flight, and what is in flight are the open groups;
- no group is given to the trainer whose first token is older than `max_staleness` versions, and none is given up for
  its age: what could become too old is not started (AReaL's bound, arXiv:2505.24298; windowed FIFO: see `window`);
- a member of a group has one answer: later ones, of attempts that were replaced, change nothing;
- `restore(state())` has the same future.

An event is O(log n), amortised, save `Resumed` and a batch itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.accounts import Accounts
from miles_lite.scheduler.breaker import Breaker
from miles_lite.scheduler.groups import UNSTARTED, Open
from miles_lite.scheduler.pace import has_place, has_room, may_open, may_refill, may_retry, tally
from miles_lite.scheduler.protocol import AttemptId, Command, End, Event
from miles_lite.scheduler.schedule import Schedule
from miles_lite.scheduler.state import Json, State
from miles_lite.scheduler.submission import Submission
from miles_lite.scheduler.window import Window


class Prompts(Protocol):
    """Where prompts come from; its state is its owner's to keep."""

    def take(self) -> int: ...
    def __len__(self) -> int: ...


class Scheduler:
    """See the module. Its owner carries out the commands of one event, in order, before it tells the next."""

    def __init__(self, schedule: Schedule, prompts: Prompts, *, accounts: Accounts | None = None) -> None:
        self.schedule = schedule
        self.accounts = accounts or Accounts()
        self._prompts = prompts
        self._failures = Breaker(schedule)
        self._adopt(State(schedule.capacity))
        self._commands: list[Command] = []
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            m.Finished: self._finished,
            m.Judged: self._judged,
            m.Wanted: self._want,
            m.Trained: self._trained,
            m.Updated: self._updated,
            m.Capacity: self._resized,
            m.Tick: self._ticked,
            m.Resumed: self._resumed,
            m.Closed: self._closed,
        }

    # ---- what can be asked -----------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Rollouts that an agent is at work on."""
        return len(self._state.running)

    @property
    def oldest(self) -> float | None:
        """When the rollout that runs longest was started, on the owner's clock."""
        return next(iter(self._state.running.values()), None)

    @property
    def ready(self) -> int:
        """Groups that wait for the trainer."""
        return self._window.ready

    @property
    def capacity(self) -> int:
        """Rollouts that may run at once."""
        return self._state.capacity

    @property
    def step(self) -> int:
        """The batch that is given next."""
        return self._state.step

    @property
    def version(self) -> int:
        """Of the weights that every engine serves."""
        return self._state.version

    @property
    def dropped(self) -> dict[str, int]:
        """Why groups were dropped since the last batch."""
        return dict(self._state.dropped)

    @property
    def quarantined(self) -> frozenset[int]:
        """Prompts that are not dealt any longer."""
        return frozenset(self._failures.quarantined)

    def state(self) -> Json:
        """All that it knows, as JSON holds it."""
        return {
            "run": self._state.as_json(),
            "accounts": dataclasses.asdict(self.accounts),
            "window": self._window.as_json(),
            "submission": self._submission.as_json(),
            "failures": self._failures.as_json(),
        }

    def restore(self, state: Json) -> None:
        """Become what `state` was taken of. For a scheduler that was told nothing yet."""
        for name, value in state["accounts"].items():
            setattr(self.accounts, name, value)
        self._adopt(State.of_json(state["run"]))
        self._window.restore(state["window"])
        self._submission.restore(state["submission"])
        self._failures.restore(state["failures"])

    def _adopt(self, state: State) -> None:
        self._state = state
        self._window = Window(self.schedule, state.groups)
        self._submission = Submission(self.schedule, state.groups)

    # ---- events ----------------------------------------------------------------------------------------------------

    def on(self, event: Event, now: float) -> list[Command]:
        """What is to be done about it. `now` are seconds on any clock that does not go back."""
        self._commands = []
        if not self._state.stopped or isinstance(event, m.Closed):
            self._handlers[type(event)](event, now)
            self._deliver()
            self._open()
            self._start(now)
        return self._commands

    def _finished(self, event: m.Finished, now: float) -> None:
        who, group = event.who, self._state.groups.get(event.who.group)
        since = self._state.running.pop(who, None)
        if group is None or who.member in group.done or (event.failed and since is None):
            self.accounts.late += 1
            return
        stop = self._failures.rollout(event.failed, event.why)
        if event.failed and since is not None:
            self._failed(group, who.member, ran=now - since, again=event.again)
        else:
            self._answered(group, who, event.length, counts=since is not None)
        if group.complete:
            self._state.active -= 1
            self._commands.append(m.Judge(group.ordinal, group.lost, group.prompt))
        if stop:
            self._stop(stop)

    def _failed(self, group: Open, member: int, *, ran: float, again: bool) -> None:
        group.failed[member] += 1
        once_more = again and group.failed[member] <= self.schedule.sample_retries
        if once_more and may_retry(self.schedule, self._state, group, ran):
            group.waiting.append(member)
            self._submission.put(group)
            self.accounts.rollouts_retried += 1
        else:
            group.done.append(member)
            group.lost += 1

    def _answered(self, group: Open, who: AttemptId, length: int, *, counts: bool) -> None:
        if not counts:  # it was replaced, and is earlier all the same
            if who.member in group.waiting:
                group.waiting.remove(who.member)
            else:
                self._cancel(AttemptId(who.group, who.member, group.attempts[who.member] - 1))
        group.done.append(who.member)
        group.lengths += length
        self._submission.answered(group, length)

    def _judged(self, event: m.Judged, now: float) -> None:
        group = self._state.groups.get(event.group)
        if group is None:  # it was given up meanwhile
            return
        quarantines = self._failures.group(group.prompt, failed=event.end is End.FAILED)
        if event.end is None:
            group.settled = True
            self._window.settled(group)
            return
        self._state.dropped[event.reason] += 1
        self._window.left(group)
        self._end(group, End.QUARANTINED if quarantines else event.end, event.reason)

    def _want(self, event: m.Wanted, now: float) -> None:
        self._state.wanted = True

    def _trained(self, event: m.Trained, now: float) -> None:
        for step in [step for step in self._state.given if step <= event.step]:
            del self._state.given[step]

    def _updated(self, event: m.Updated, now: float) -> None:
        self._state.serve(event.version, now)

    def _resized(self, event: m.Capacity, now: float) -> None:
        self._state.capacity = event.rollouts

    def _ticked(self, event: m.Tick, now: float) -> None:
        patience, running = self.schedule.patience, self._state.running
        while patience and running and not self._state.stopped:
            who, since = next(iter(running.items()))
            if now - since < patience:
                break
            self._commands.append(m.Cancel(who))
            self._finished(m.Finished(who, failed="timeout", why=f"no answer for {patience:.0f} s"), now)

    def _resumed(self, event: m.Resumed, now: float) -> None:
        old = self._state
        again = [group for step, batch in old.given.items() if step >= event.step for group in batch]
        self.accounts.book(End.TRAINED, -len(again))
        groups = sorted([*old.groups.values(), *again], key=lambda group: group.ordinal)
        for who in old.running:
            old.groups[who.group].waiting.append(who.member)
        for group in groups:
            if group.ordinal not in event.kept or len(group.attempts) != self.schedule.rollouts_per_group:
                self._renew(group)
        self._adopt(old.resumed(event.step, groups, again, capacity=self.schedule.capacity))
        self._fit(groups)
        self._state.count()
        for group in self._state.groups.values():
            self._window.restored(group)
            self._submission.put(group)
            if group.complete and not group.settled:
                self._commands.append(m.Judge(group.ordinal, group.lost, group.prompt))

    def _fit(self, groups: list[Open]) -> None:
        """Make room where the schedule has less than the one that `groups` were started under."""
        begun = sorted((group for group in groups if group.version != UNSTARTED), key=lambda group: group.version)
        for older, group in enumerate(begun):
            if not has_place(self.schedule, self._state, group, older):
                self._renew(group)
        for group in groups[self.schedule.most_open :]:
            self._state.returned.append(group.prompt)
            self._end(group, End.UNUSED)

    def _renew(self, group: Open) -> None:
        self._commands.append(m.Renew(group.ordinal, judged=group.settled))
        self.accounts.rollouts_started += group.again(self.schedule.rollouts_per_group)

    def _closed(self, event: m.Closed, now: float) -> None:
        self._give_up()
        self._state.stopped = "the run has ended"

    # ---- what follows ----------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand the trainer a batch, when it wants one and there is one."""
        state = self._state
        if not state.wanted or state.stopped:
            return
        exhausted = not may_refill(self.schedule, state) and self._window.ready == len(state.groups)
        taken = self._window.pick(state.step, opened=self.accounts.started, rest=exhausted)
        if not taken:
            if exhausted:
                self._stop(f"a rollout kept no group to train on: {tally(self.schedule, state, 0)}")
            return
        short = tally(self.schedule, state, len(taken)) if len(taken) < self.schedule.groups_per_step else ""
        state.given[state.step] = [state.groups.pop(ordinal) for ordinal in taken]
        self._commands.append(m.Deliver(state.step, tuple(taken), short))
        self.accounts.book(End.TRAINED, len(taken))
        state.wanted, state.opened = False, 0
        state.step += 1
        state.dropped.clear()
        if self.schedule.gives_up_extra:
            self._give_up()
        state.passed = max(state.passed, taken[-1] + 1)
        state.count()

    def _give_up(self) -> None:
        """Of what was started beyond the batch nothing is needed."""
        for who in list(self._state.running):
            self._cancel(who)
        for group in list(self._state.groups.values()):
            if self.schedule.reuse_unused:
                self._state.returned.append(group.prompt)
            self._end(group, End.UNUSED)
        self._window.clear()

    def _open(self) -> None:
        """Open groups as far as the bound allows."""
        state = self._state
        while not state.stopped and may_open(self.schedule, state):
            prompt = self._prompt()
            if prompt is None:
                times = self.schedule.quarantine_after
                self._stop(f"each of the {len(self._prompts)} prompts failed {times} times in a row")
                return
            group = Open.of(self.accounts.started, prompt, self.schedule.rollouts_per_group)
            state.groups[group.ordinal] = group
            state.opened += 1
            self.accounts.started += 1
            self.accounts.rollouts_started += self.schedule.rollouts_per_group
            self._submission.put(group)

    def _prompt(self) -> int | None:
        """The next that is not in quarantine; None where all are."""
        for _ in range(len(self._state.returned) + 2 * len(self._prompts)):
            prompt = self._state.returned.popleft() if self._state.returned else self._prompts.take()
            if prompt not in self._failures.quarantined:
                return prompt
        return None

    def _start(self, now: float) -> None:
        """Start members of open groups as far as there is room."""
        state = self._state
        while not state.stopped and (group := self._submission.first()) is not None:
            fresh = group.version == UNSTARTED
            if not has_room(self.schedule, state, fresh=fresh):
                break
            if fresh:
                group.version = state.version
                state.active += 1
                self._window.started(group)
            for _ in range(len(group.waiting) if self.schedule.granularity == "group" else 1):
                member = group.waiting.pop()
                who = AttemptId(group.ordinal, member, group.attempts[member])
                group.attempts[member] += 1
                state.running[who] = now
                self._commands.append(m.Start(who, group.prompt))

    def _end(self, group: Open, end: End, reason: str = "") -> None:
        del self._state.groups[group.ordinal]
        self.accounts.book(end)
        self._state.overtaken -= group.ordinal < self._state.passed
        self._state.active -= end is End.UNUSED and group.active
        self._commands.append(m.Release(group.ordinal, end, reason))

    def _cancel(self, who: AttemptId) -> None:
        if self._state.running.pop(who, None) is not None:
            self._commands.append(m.Cancel(who))

    def _stop(self, reason: str) -> None:
        self._state.stopped = reason
        self._commands.append(m.Stop(reason))
