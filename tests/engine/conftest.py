"""One real SGLang server behind a real router, in real Ray actors, for the folder: test_ending_e2e.py, its last file,
stops it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import requests

from miles_lite.engine.actor import EngineActor
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.stack.environment import actor_env
from tests.clusters import local_cluster
from tests.models import make_tiny_model
from tests.waiting import wait_until


@dataclass
class Running:
    """Handles of what the fixture started."""

    engine: Any
    info: EngineInfo
    router: Any
    router_url: str
    spec: EngineSpec

    def generate(self, input_ids: list[int], *, url: str | None = None, **sampling: Any) -> dict[str, Any]:
        """One sampled continuation with logprobs, through the router."""
        sampling = {"max_new_tokens": 16, "ignore_eos": True} | sampling
        body = {"input_ids": input_ids, "sampling_params": sampling, "return_logprob": True}
        reply = requests.post(f"{url or self.router_url}/generate", json=body, timeout=60)
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    with local_cluster(cpus=2):
        yield


@pytest.fixture(scope="package")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="package")
def running(cluster: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny_model, tmp_path_factory.mktemp("logs")) as started:
        yield started


@contextmanager
def serving(model: Path, logs: Path, **options: Any) -> Iterator[Running]:
    """An engine behind a router, both in actors; `options` are more of its spec's."""
    router = remote(RouterActor).remote(RouterSpec())
    router_url = ray.get(router.start.remote(), timeout=120)
    spec = EngineSpec(
        index=0,
        model_path=str(model),
        device="cpu",
        router_urls=(router_url,),
        log_path=str(logs / "engine-0.log"),
        context_length=2048,
        threads=1,
        weight_version=3,
        **options,
    )
    engine = remote(EngineActor).remote(spec)
    info = ray.get(engine.start.remote(), timeout=300)
    yield Running(engine, info, router, router_url, spec)
    ray.get(engine.stop.remote(), timeout=120)
    ray.get(router.stop.remote(), timeout=120)


def wait_computing(engine: Any) -> None:
    """Return once the engine is at work on a request."""

    def computing() -> bool:
        load = ray.get(engine.load.remote())
        return load is not None and load.running > 0

    wait_until(computing, "the request to reach the engine")


def remote(actor: type) -> Any:
    """`actor` as a Ray actor with the driver's environment."""
    return ray.remote(actor).options(num_cpus=0, runtime_env={"env_vars": actor_env()})
