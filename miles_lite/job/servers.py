"""What a run rolls out with: the rollout manager, and the servers and agents that it keeps."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import ray
from ray import ObjectRef

from miles_lite.config.options import Config
from miles_lite.errors import UnavailableError
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.ranks import START_TIMEOUT
from miles_lite.job.watch import Alarms, Watch
from miles_lite.observe.progress import Progress
from miles_lite.process.admin_key import known_key
from miles_lite.process.patience import Patience
from miles_lite.process.remote import Remote
from miles_lite.report.event_rows import Kind
from miles_lite.rollout.answers import Evaluated, Generated, Started
from miles_lite.rollout.manager import RolloutManager
from miles_lite.stack.actors import named_actor
from miles_lite.stack.placement import Layout
from miles_lite.stack.stack import FLEET

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

CALL_TIMEOUT = 600.0
STOP_TIMEOUT = 5.0
STALL_MARGIN = 180.0
POLL_SECONDS = 0.5


class StartingServers:
    """They start while others do; `started` waits for them."""

    def __init__(self, config: Config, life: Lifetime, layout: Layout) -> None:
        self._config, self._life, self._watch = config, life, life.watch
        self._manager = named_actor(RolloutManager, "rollout-manager")(config, layout, known_key())
        life.parts.callback(_stop, self._manager)
        life.watch.follow("the rollout manager", self._manager)
        ask = lambda: self._manager.call(RolloutManager.alarms)  # noqa: E731
        life.watch.hears.append(Alarms(ask, life.record_server_line))
        self._starting, self._began = self._manager.call(RolloutManager.start), time.monotonic()

    def started(self) -> Servers:
        """Raises UserError when a part does not come up."""
        limit = START_TIMEOUT + self._config.engines.engine_start_timeout
        told = self._watch.wait(self._starting, "the rollout manager to start its engines", limit)
        self._watch.follow(FLEET, told.fleet)
        log.info("routers %s, sessions %s, engines %s", told.router_urls, told.session_urls, told.engine_urls)
        where = f"engines {', '.join(told.engine_urls)}; {', '.join(told.router_urls)}; {', '.join(told.session_urls)}"
        self._life.course.events.record(Kind.ENGINES, where, seconds=time.monotonic() - self._began)
        return Servers(self._config, self._watch, self._manager, told)


class Servers:
    """They serve. Every call is waited for, and ends with what `Watch.wait` raises."""

    def __init__(self, config: Config, watch: Watch, manager: Remote[RolloutManager], told: Started) -> None:
        self._config, self._watch, self._manager = config, watch, manager
        self.started = told

    def call(
        self, method: Callable[Concatenate[RolloutManager, P], Awaitable[R]], *args: P.args, **options: P.kwargs
    ) -> R:
        """What a method of the manager returns."""
        ref = self._manager.call(method, *args, **options)
        return self._watch.wait(ref, f"the rollout manager's {method.__name__}", CALL_TIMEOUT)

    def call_nowait(
        self, method: Callable[Concatenate[RolloutManager, P], Awaitable[None]], *args: P.args, **options: P.kwargs
    ) -> None:
        """Have the manager do it, and do not wait for it."""
        self._manager.call(method, *args, **options)

    def generate(self, rollout_id: int, progress: Progress) -> Generated:
        """A step's groups. Gives up when no rollout ends for longer than one may take."""
        limit, logs = self._config.rollouts.rollout_timeout + STALL_MARGIN, self._config.run_dir / "logs"
        ref = self._manager.call(RolloutManager.generate, rollout_id)
        before, patience = None, Patience(f"a rollout of step {rollout_id + 1} to end", limit, self._watch.notify)
        while not self._watch.until(ref, POLL_SECONDS):
            status = self.call(RolloutManager.status)
            progress.update(groups=status.groups_done, rollouts=status.rollouts_done)
            if status != before:
                before = status
                patience.renew()
            elif patience.over(partial(str, status)):
                raise UnavailableError(
                    f"rollout {rollout_id}: no agent finished for {limit:.0f} s ({status.rollouts_done} of "
                    f"{status.rollouts_started} did). See {logs}; --rollout-timeout bounds an agent."
                )
        return self._watch.wait(ref, "the rollout's groups", CALL_TIMEOUT)

    def begin_evaluation(self) -> ObjectRef[Evaluated]:
        """Run the held-out prompts, while other things go on."""
        return self._manager.call(RolloutManager.eval)

    def finish_evaluation(self, ref: ObjectRef[Evaluated]) -> Evaluated:
        """What came of it."""
        timeout = eval_timeout(self._config, self.started.eval_rollouts)
        return self._watch.wait(ref, "the rollout manager's eval", timeout)


def eval_timeout(config: Config, rollouts: int) -> float:
    """As many times --rollout-timeout as agents have to wait for one another, and a margin; seconds."""
    options = config.rollouts
    waves = math.ceil(rollouts / (options.num_agent_workers * options.agent_concurrency))
    return CALL_TIMEOUT + waves * options.rollout_timeout


def _stop(manager: Remote[RolloutManager]) -> None:
    """What does not end by itself ends with this process."""
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(manager.call(RolloutManager.stop), timeout=STOP_TIMEOUT)
    with contextlib.suppress(ray.exceptions.RayError):
        manager.kill()
