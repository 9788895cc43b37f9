"""Transports driven in this process: who is asked for what, in which order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from miles_lite.config.choices import TransferMode
from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import Bucket, Meeting, WeightUpdate
from miles_lite.weights.delivery import Receiver
from miles_lite.weights.receiver import EngineError
from miles_lite.weights.transports import TRANSPORTS

UPDATE = WeightUpdate("folder", 1, buckets=tuple(Bucket((str(at),), ((1,),), "float32") for at in range(4)))
HERE = "memory"


@dataclass
class Here:
    """The handle of an actor in this process; its calls are made one after another, as an actor of Ray does them."""

    actor: Any
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            async with self.busy:
                await asyncio.sleep(0)
                done = getattr(self.actor, name)(*args, **options)
                return await done if asyncio.iscoroutine(done) else done

        class Method:
            remote = staticmethod(lambda *args, **options: asyncio.ensure_future(call(*args, **options)))

        return Method


class Trainer:
    def __init__(self, told: list[str]) -> None:
        self._told = told

    def memory(self) -> str:
        return HERE

    def share_bucket(self, index: int, copies: int) -> list[bytes]:
        self._told.append(f"share {index}")
        return [f"{index}.{copy}".encode() for copy in range(copies)]

    def prepare_bucket(self, index: int) -> None:
        self._told.append(f"prepare {index}")

    def broadcast_bucket(self, index: int) -> None:
        self._told.append(f"broadcast {index}")

    def open_group(self, world_size: int) -> Meeting:
        self._told.append(f"open {world_size}")
        return Meeting("host", 1, "name", "gloo", world_size)

    def join_group(self) -> None: ...
    def close_group(self) -> None:
        self._told.append("close")


@dataclass
class Engine:
    told: list[str]
    ranks: int = 1
    memory: str | None = HERE
    pid: int = 1
    fails_at: int | None = None
    loaded: list[list[bytes]] = field(default_factory=list)
    committed: bool | None = None
    first_rank: int | None = None

    async def begin_update(self, update: WeightUpdate) -> None:
        self.committed = None
        self.loaded.clear()

    async def load_bucket(self, shared: list[bytes]) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        if len(self.loaded) == self.fails_at:
            raise EngineError("no")
        self.told.append(f"loaded {len(self.loaded)}")
        self.loaded.append(shared)

    async def end_update(self, *, commit: bool) -> float:
        self.committed = commit
        return 0.0

    async def join_group(self, meeting: Meeting, first_rank: int) -> None:
        self.first_rank = first_rank

    async def leave_group(self) -> None: ...


def deliver(mode: TransferMode, told: list[str], *engines: Engine) -> dict[int, str]:
    async def run() -> dict[int, str]:
        trainer: Remote[Any] = Remote(Here(Trainer(told)))  # type: ignore[arg-type]
        receivers: list[Receiver[Any]] = [
            Receiver(at, Remote(Here(engine)), engine)  # type: ignore[arg-type]
            for at, engine in enumerate(engines)
        ]
        return await TRANSPORTS[mode]().deliver(UPDATE, trainer, receivers)

    return asyncio.run(run())


def test_there_is_a_transport_for_each_mode() -> None:
    assert list(TRANSPORTS) == list(TransferMode)


def test_the_next_bucket_is_made_while_engines_load_the_one_before() -> None:
    for mode, makes in ((TransferMode.TENSOR, "share"), (TransferMode.DISTRIBUTED, "prepare")):
        told: list[str] = []
        engine = Engine(told, ranks=2)
        assert deliver(mode, told, engine) == {}
        assert engine.committed
        for index in range(3):
            assert told.index(f"{makes} {index + 1}") < told.index(f"loaded {index}")
            assert told.index(f"loaded {index}") < told.index(f"loaded {index + 1}")
        for index in range(2):  # and no more than two are there
            assert told.index(f"loaded {index}") < told.index(f"{makes} {index + 2}")


def test_each_rank_gets_a_handle_of_its_own_and_a_rank_of_its_own() -> None:
    engines = [Engine([], ranks=2, pid=1), Engine([], ranks=1, pid=2)]
    assert deliver(TransferMode.TENSOR, [], *engines) == {}
    assert [engine.loaded[3] for engine in engines] == [[b"3.0", b"3.1"], [b"3.2"]]
    told: list[str] = []
    assert deliver(TransferMode.DISTRIBUTED, told, *engines) == {}
    assert told[0] == "open 4"
    assert [engine.first_rank for engine in engines] == [1, 3]


def test_by_memory_others_go_on_and_by_broadcast_none_does_when_an_engine_fails() -> None:
    engines = [Engine([]), Engine([], fails_at=2)]
    assert deliver(TransferMode.TENSOR, [], *engines) == {1: "no"}
    assert [engine.committed for engine in engines] == [True, False]
    told: list[str] = []
    failures = deliver(TransferMode.DISTRIBUTED, told, *engines)
    assert failures == {0: "another engine failed", 1: "no"}
    assert [engine.committed for engine in engines] == [False, False]
    assert "close" in told
