"""Weights from a trainer's GPU into SGLang on GPUs: CUDA IPC on one, NCCL with a second one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from miles_lite.config.choices import PauseMode, TransferMode
from miles_lite.config.engines import Engines
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.spec import EngineInfo, EngineSpec
from miles_lite.process.remote import Remote
from miles_lite.stack.environment import actor_env
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Receiver
from miles_lite.weights.transports import TRANSPORTS
from tests.models import make_tiny_model
from tests.weights.sender_process import FolderTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, EngineInfo]]:
    """One server on GPU 0."""
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    spec = EngineSpec(
        index=0,
        model_path=str(tiny_model),
        device="cuda",
        log_path=str(tmp_path_factory.mktemp("logs") / "log"),
        context_length=2048,
        engines=Engines(sglang_args={"mem_fraction_static": "0.3", "dtype": "bfloat16"}),
    )
    environment = {"env_vars": actor_env(gpu=True)}
    actor: Any = ray.remote(EngineActor).options(num_gpus=0.2, runtime_env=environment).remote(spec)
    yield actor, ray.get(actor.start.remote(), timeout=600)
    ray.get(actor.stop.remote(), timeout=60)
    ray.shutdown()


@pytest.mark.parametrize(
    ("mode", "device"),
    [
        (TransferMode.TENSOR, "cuda:0"),
        pytest.param(
            TransferMode.DISTRIBUTED,
            "cuda:1",
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
        ),
    ],
)
async def test_what_the_engine_serves_is_what_was_sent(engine: tuple[Any, EngineInfo], tmp_path: Path, mode, device):
    actor, info = engine
    other = make_tiny_model(tmp_path / "other", seed=1)
    environment = {"env_vars": actor_env(gpu=True)}
    trainer: Any = ray.remote(FolderTrainer).options(num_gpus=0.2, runtime_env=environment).remote(device)
    buckets = ray.get(trainer.load.remote(str(other), 100_000))
    update = WeightUpdate(str(other), 1, PauseMode.RETRACT, tuple(buckets))
    receivers: list[Receiver[EngineActor]] = [Receiver(0, Remote(actor), info)]
    assert await TRANSPORTS[mode]().deliver(update, Remote(trainer), receivers) == {}
    assert ray.get(actor.verify_weights.remote()) > 10
    ray.kill(trainer)
