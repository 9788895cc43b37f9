"""The engines of a stack: a Ray actor that starts them together, watches them one by one, and replaces one while the
others go on.

Invariant: an engine is registered with the router only when it serves the current weights; one that has ended or hangs
is taken out of the router before its replacement starts. Only the moment between loading and registering excludes
weight updates, not the replacement's start. Engines belong to it: they end with it, however it ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from miles_lite.config.choices import TransferMode
from miles_lite.config.engines import WeightUpdates
from miles_lite.config.serving import Serving
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.reported_load import Load
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.errors import UnavailableError, UserError, plain
from miles_lite.process.addresses import actor_label, loopback
from miles_lite.process.patience import Patience
from miles_lite.process.remote import Remote
from miles_lite.process.undo import undone
from miles_lite.stack.actors import NO_SLOT, Waiting, named_actor, restarted
from miles_lite.stack.engine_plans import plan_engines
from miles_lite.stack.engine_slot import EngineSlot
from miles_lite.stack.placement import ENGINE_SHARE, Layout
from miles_lite.stack.router_sync import RouterSync
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import DeliveringActor, Failures, Receiver
from miles_lite.weights.fits import WeightsError
from miles_lite.weights.receiver import EngineError
from miles_lite.weights.transports import TRANSPORTS

log = logging.getLogger(__name__)

FOLDER_TIMEOUT = 600.0
"""Seconds a replacement waits for the folder of the current version to be written."""


@dataclass(frozen=True)
class Recovery:
    """An engine that was replaced: when it was missed and when the other one served, in seconds since the epoch."""

    index: int
    reason: str
    noticed: float
    serving: float


@dataclass(frozen=True)
class FleetStatus:
    """How a fleet stands: the engines that serve, how often one was started anew, what was replaced."""

    engines: Sequence[EngineInfo]
    restarts: int
    recoveries: Sequence[Recovery]


class Fleet(DeliveringActor[EngineActor]):
    """All engines of one model. Async Ray actor: `start` first."""

    def __init__(
        self,
        options: Serving,
        layout: Layout,
        *,
        model: Path,
        context_length: int,
        updates: WeightUpdates | None = None,
        admin_key: str | None = None,
        router_key: str | None = None,
    ) -> None:
        """`admin_key` opens the engines' weight endpoints, `router_key` the router's control; None: they are open."""
        self._options = options
        self._updates = updates = updates or WeightUpdates()
        super().__init__(
            WeightUpdate(str(model), 0, updates.pause_generation_mode),
            stream=TRANSPORTS[updates.update_weight_transfer_mode](),
            disk=TRANSPORTS[TransferMode.DISK](),
        )
        self._layout = layout
        template = options.session.chat_template_path
        self._text = {"tokenizer_path": str(model), **({"chat_template": template} if template else {})}
        self._context = context_length
        self._waiting = Waiting(self._notify, options.run_dir / "logs")
        self._slots = [EngineSlot(plan) for plan in plan_engines(options.topology)]
        self._watchers: list[asyncio.Task[None]] = []
        self._routers: list[RouterSync] = []
        self._router_urls: tuple[str, ...] = ()
        self._admin_key, self._router_key = admin_key, router_key
        self._news = asyncio.Event()
        self.lines: list[str] = []
        self.recoveries: list[Recovery] = []
        self.failure: UserError | None = None

    def __repr__(self) -> str:
        return actor_label("Fleet", f"{len(self._slots)} engine(s)")

    @property
    def restarts(self) -> int:
        return sum(slot.restarts for slot in self._slots)

    @property
    def engines(self) -> list[EngineInfo]:
        """Those that serve."""
        return [slot.info for slot in self._slots if slot.info]

    @property
    def urls(self) -> list[str]:
        return [engine.url for engine in self.engines]

    async def start(self, router_urls: Sequence[str]) -> list[str]:
        """Start all engines at once, register them with every router, and watch them; their URLs. Raises UserError when
        one does not come up."""
        self._router_urls = tuple(router_urls)
        self._routers = [RouterSync(url, key=self._router_key, notify=self._notify) for url in router_urls]
        self._check_layout()
        await asyncio.gather(*(self._fill(slot) for slot in self._slots))
        self._watchers = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        self._watchers += [asyncio.create_task(router.run(self._changing.locked)) for router in self._routers]
        return self.urls

    async def new_lines(self, heard: int) -> list[str]:
        """What a person must hear, from line `heard` on, as soon as there is some. Raises UserError once that was all
        and no engine of a role is left."""
        while len(self.lines) <= heard:
            if self.failure is not None:
                raise self.failure
            self._news.clear()
            await self._news.wait()
        return self.lines[heard:]

    async def status(self) -> FleetStatus:
        return FleetStatus(self.engines, self.restarts, self.recoveries)

    async def stop(self) -> None:
        """End all engines within a bound."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*(slot.end() for slot in self._slots))

    async def loads(self) -> dict[int, Load | None]:
        """What each engine bears, by its index; None where it does not say, or none serves. Empty while weights
        change."""
        if self._changing.locked():
            return {}
        asked = {slot.index: slot.actor.call(EngineActor.load) for slot in self._slots if slot.info}
        told = zip(asked, await asyncio.gather(*asked.values(), return_exceptions=True), strict=True)
        said = {index: one for index, one in told if isinstance(one, Load)}
        return {slot.index: said.get(slot.index) for slot in self._slots}

    def _serving(self) -> list[Receiver[EngineActor]]:
        return [Receiver(slot.index, slot.actor, slot.info) for slot in self._slots if slot.info]

    async def _admit(self, version: int, *, previous: int | None = None) -> list[str]:
        stale = await asyncio.gather(*(router.admit(version, previous=previous) for router in self._routers))
        return sorted({url for urls in stale for url in urls})

    async def _end(self, failures: Failures) -> None:
        """Their watchers replace them."""
        for index, error in failures.items():
            self._notify(f"engine {index} did not take version {self._weights.version}: {error}")
        await asyncio.gather(*(slot.end() for slot in self._slots if slot.index in failures))

    # ---- starting ------------------------------------------------------------------------------------------------

    def _check_layout(self) -> None:
        """Raises UserError when servers could not work in the slots that Ray gave."""
        bundles, host = self._layout.engine_slots, self._options.hosts.bind_host
        machines = self._layout.machines(bundles)
        if loopback(host) and machines > 1:
            raise UserError(
                f"--bind-host {host}: the engines are on {machines} machines, and others do not reach them there.\n"
                "  Give --bind-host 0.0.0.0."
            )
        for plan in (slot.plan for slot in self._slots if not slot.plan.external_url):
            for rank in range(plan.nodes):
                self._layout.check_neighbours(bundles[plan.on_node(rank)], f"engine {plan.index}")

    async def _fill(self, slot: EngineSlot) -> None:
        """Start an engine in `slot`, bring it to the current weights, register it. Raises UserError, EngineError,
        WeightsError or RayError when it cannot be; nothing is left of it then."""
        await self._written()
        specs = self._engine_specs(slot)
        slot.nodes = [self._actor(slot, spec) for spec in specs]
        async with undone(lambda: asyncio.shield(slot.end())):
            info = await self._started(slot)
            async with self._changing:
                if self._weights.version != specs[0].weight_version or (slot.plan.external_url and slot.restarts):
                    await self._written()
                    folder = dataclasses.replace(self._weights, buckets=())
                    await slot.actor.call(EngineActor.update_weights, folder)
                await slot.actor.call(EngineActor.register)
                slot.info = info
                for router in self._routers:
                    router.joined(info)

    async def _started(self, slot: EngineSlot) -> EngineInfo:
        what, timeout = f"engine {slot.index}", self._options.engines.engine_start_timeout + 30
        meeting = await slot.actor.call(EngineActor.rendezvous_address) if slot.plan.nodes > 1 else None
        starting = [node.call(EngineActor.start, register=False, meeting=meeting) for node in slot.nodes]
        infos = await asyncio.gather(
            *(self._waiting.started(*each, what, timeout) for each in zip(slot.nodes, starting, strict=True))
        )
        memories = {info.memory for info in infos}
        return dataclasses.replace(infos[0], memory=memories.pop() if len(memories) == 1 else None)

    def _actor(self, slot: EngineSlot, spec: EngineSpec) -> Remote[EngineActor]:
        """An actor for one node of an engine, in the first of the slots that it fills there."""
        name = f"engine-{slot.index}" + (f"-node-{spec.node_rank}" if spec.node_rank else "")
        where = NO_SLOT
        if not slot.plan.external_url:
            first, *_ = self._layout.engine_slots[slot.plan.on_node(spec.node_rank)]
            where = self._layout.options(first, ENGINE_SHARE)
        gpu = self._layout.device == "cuda"
        return named_actor(EngineActor, restarted(name, slot.restarts), where, gpu=gpu)(spec)

    def _engine_specs(self, slot: EngineSlot) -> list[EngineSpec]:
        """What the engine of `slot` is to be, on each of its nodes."""
        options, plan = self._options, slot.plan
        args = {**self._text, **options.engines.sglang_args, **plan.overrides}
        logs, name = options.run_dir / "logs", f"engine-{slot.index}"
        first = EngineSpec(
            index=slot.index,
            model_path=self._weights.path,
            device=self._layout.device,
            log_path=str(logs / f"{name}.{slot.restarts}.log"),
            engines=dataclasses.replace(options.engines, sglang_args=args),
            routing=options.routing,
            updates=self._updates,
            hosts=options.hosts,
            worker_type=plan.role,
            router_urls=self._router_urls,
            seed=options.seeding.seed,
            slots=plan.slots,
            nodes=plan.nodes,
            external_url=plan.external_url,
            admin_key=self._admin_key,
            router_key=self._router_key,
            weight_version=self._weights.version,
            context_length=self._context,
            threads=max(1, (os.cpu_count() or 1) // (2 * sum(each.plan.slots for each in self._slots))),
        )
        others = [
            dataclasses.replace(first, node_rank=rank, log_path=str(logs / f"{name}-node-{rank}.{slot.restarts}.log"))
            for rank in range(1, first.nodes)
        ]
        return [first, *others]

    # ---- keeping alive -------------------------------------------------------------------------------------------

    async def _keep(self, slot: EngineSlot) -> None:
        """Replace the engine of `slot` whenever it ends or hangs, as often as --engine-restarts allows."""
        limit = self._options.engines.engine_restarts
        while slot.info is not None:
            reason = await slot.wait_for_failure()
            noticed = time.time()
            self._notify(f"engine {slot.index}: {reason}; replacing it ({slot.restarts} so far)")
            info, slot.info = slot.info, None
            await asyncio.gather(*(router.leave(info) for router in self._routers), slot.end())
            while slot.info is None and slot.restarts < limit:
                slot.restarts += 1
                try:
                    await self._fill(slot)
                except (UserError, EngineError, WeightsError, ray.exceptions.RayError) as error:
                    self._notify(f"engine {slot.index}, restart {slot.restarts} of {limit}: {plain(error)}")
                    reason = str(plain(error))
                else:
                    self.recoveries.append(Recovery(slot.index, reason, noticed, time.time()))
        self._give_up(slot, reason)

    def _give_up(self, slot: EngineSlot, reason: str) -> None:
        """The run ends when this was the last engine of its role."""
        limit = self._options.engines.engine_restarts
        slot.given_up = True
        self._notify(f"engine {slot.index} is given up after {limit} restarts: {reason}")
        if all(other.given_up for other in self._slots if other.role == slot.role):
            self.failure = UnavailableError(
                f"no {slot.role} engine is left: engine {slot.index} ended and --engine-restarts {limit} are used up. "
                f"Last reason: {reason}\n  See {self._options.run_dir / 'logs'}."
            )
            self._news.set()

    async def _written(self) -> None:
        """Wait for the folder of the current weights where they came in buckets: it is written later, and complete once
        it is there. Raises UnavailableError after FOLDER_TIMEOUT."""
        patience = Patience(f"the trainer to write {self._weights.path}", FOLDER_TIMEOUT, self._notify)
        while self._weights.buckets and not Path(self._weights.path).is_dir():
            if patience.over():
                raise patience.ended("an engine that is replaced starts from it")
            await asyncio.sleep(0.1)

    def _notify(self, line: str) -> None:
        log.warning("%s", line)
        self.lines.append(line)
        self._news.set()
