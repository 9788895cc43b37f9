"""The room's fixtures: a model's text, and one real stack for all tests that need an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from miles_lite.config.engines import Engines
from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.session.actor import SessionActor, SessionSpec
from miles_lite.tito import Tito, tito_of
from tests.clusters import local_cluster
from tests.engine.conftest import remote, serving
from tests.models import make_tiny_moe


@pytest.fixture(scope="session")
def tito(tiny_model: Path) -> Tito:
    return tito_of(tiny_model, append_roles=("tool", "user"))


@dataclass
class Stack:
    """Handles of what the fixture started."""

    engine: Any
    session: Any
    url: str
    router_url: str
    model: Path


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A mixture-of-experts model, whose routed experts the session asks for."""
    tiny_model = make_tiny_moe(tmp_path_factory.mktemp("moe"))
    experts = Engines(sglang_args={"enable_return_routed_experts": True})
    with (
        local_cluster(cpus=2),
        serving(tiny_model, tmp_path_factory.mktemp("logs"), engines=experts) as running,
    ):
        session = remote(SessionActor).remote(
            SessionSpec(
                index=0,
                model_path=str(tiny_model),
                router_url=running.router_url,
                options=SessionOptions(tito_allowed_append_roles=("tool", "user"), session_retry_seconds=30.0),
                context_length=2048,
                run_dir=str(tmp_path_factory.mktemp("run")),
                engines=experts,
            )
        )
        url = ray.get(session.start.remote(), timeout=60)
        yield Stack(running.engine, session, url, running.router_url, tiny_model)
        ray.get(session.stop.remote(), timeout=30)
