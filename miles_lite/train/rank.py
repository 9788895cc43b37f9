"""One rank of the trainer, as a Ray actor.

Invariant: a worker does what its group tells it, in the order it tells it; the calls marked collective are made on
all ranks or none. What it waits for beyond its own arithmetic are the other ranks, for --distributed-timeout-minutes
at most. This module imports no torch, as the driver, which only calls workers, has none: they import what they compute
with when they are made.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from miles_lite.config.choices import Device
from miles_lite.config.options import Config
from miles_lite.process.addresses import actor_label
from miles_lite.traces.token_values import TokenValues
from miles_lite.train.batching import Batch, Place, fetch
from miles_lite.weights.bucket import Bucket
from miles_lite.weights.sending_actor import SendingActor

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from miles_lite.weights.gather import Published


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a rank is. `host` is "" for the node's own address, else the loopback name all ranks share."""

    config: Config
    rank: int
    ranks: int
    device: Device
    host: str
    threads: int


class TrainWorker(SendingActor):
    """A rank of a TrainGroup."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from miles_lite.train.profiling import Recorder

        host = spec.host or str(ray.util.get_node_ip_address())
        super().__init__(host=host, device=torch.device(spec.device))
        self._spec = spec
        if spec.config.compute.deterministic_mode:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        self._store: TCPStore | None = None
        self._offered = contextlib.ExitStack()
        folder = spec.config.run_dir / "profile"
        self._recorder = Recorder(spec.config.debugging, rank=spec.rank, device=self._device, folder=folder)

    def __repr__(self) -> str:
        return actor_label("TrainWorker", f"{self._spec.rank}/{self._spec.ranks}", self._spec.device)

    def host_and_pid(self) -> tuple[str, int]:
        """Host name and process id."""
        return socket.gethostname(), os.getpid()

    def rendezvous(self, timeout: float) -> tuple[str, int]:
        """Rank 0: open the store that all ranks meet at; its host and port."""
        from miles_lite.train.mesh import open_store

        self._store = open_store(self._host, ranks=self._spec.ranks, timeout=timeout)
        return self._host, self._store.port

    def start(self, address: tuple[str, int], timeout: float) -> int:
        """Join the others, build model and optimizer, restore a checkpoint; the first rollout id to run. Collective."""
        from miles_lite.train import checkpoint
        from miles_lite.train.building import build_learner
        from miles_lite.train.mesh import join, reach_store
        from miles_lite.train.rng import seed_everything

        spec, config = self._spec, self._spec.config
        host, port = address
        self._store = self._store or reach_store(host, port, ranks=spec.ranks, timeout=timeout)
        patience = 60.0 * config.parallelism.distributed_timeout_minutes
        join(self._store, rank=spec.rank, ranks=spec.ranks, device=self._device, host=host, timeout=patience)
        seed_everything(config.seeding.seed + config.dp_rank(spec.rank))
        self._learner = build_learner(config, device=self._device)
        self._saver = checkpoint.Saver(config.checkpoint)
        if config.checkpoint.load is None:
            return 0
        loaded = checkpoint.load(self._learner, Path(config.checkpoint.load).expanduser(), config.checkpoint)
        return 0 if loaded is None else loaded + 1

    def train(self, batch: Batch[Place]) -> dict[str, float]:
        """Fetch the batch's samples; then see Learner.train. Collective."""
        with self._recorder.step(batch.rollout_id):
            with self._learner.clock("fetch"):
                fetched = fetch(batch)
            return self._learner.train(fetched)

    def token_values(self) -> list[TokenValues]:
        """What the last `train` made of the tokens of its batch's kept rollouts."""
        return self._learner.token_values

    def export(self, folder: Path) -> float:
        """Write a Hugging Face folder (rank 0 does); seconds. Collective."""
        from miles_lite.weights.tensor_files import write_folder

        begin = time.perf_counter()
        weights = self._weights()
        if self._spec.rank == 0:
            with contextlib.closing(weights):
                write_folder(weights, folder)
        else:
            weights.follow()
        return time.perf_counter() - begin

    def offer(self) -> list[Bucket]:
        """Rank 0: the buckets in which engines can be given the weights, until `withdraw`. The other ranks hand over
        their parts meanwhile, and return [] then. Collective."""
        from miles_lite.weights.sender import Sender

        weights = self._weights()
        if self._spec.rank != 0:
            weights.follow()
            return []
        limit = self._spec.config.updates.update_weight_buffer_size
        self._offered.callback(weights.close)
        return self.send(Sender(weights.layout, weights.fetch, device=self._device, bucket_bytes=limit))

    def withdraw(self) -> None:
        """Forget what was offered, if anything was."""
        self._sender = None
        self._offered.close()

    def _weights(self) -> Published:
        """In what engines compute in."""
        import torch

        from miles_lite.train.adapters import merged
        from miles_lite.weights.gather import Published

        policy = self._learner.policy
        weights = merged(policy.model, policy.weights())
        return Published(policy.model, weights, torch.float32 if self._spec.device == "cpu" else torch.bfloat16)

    def export_adapter(self, folder: Path) -> None:
        """Write the adapters alone, as PEFT does (rank 0 does). Collective."""
        from miles_lite.train.adapters import save_adapter

        policy = self._learner.policy
        save_adapter(policy.model, policy.weights(), folder)

    def packs(self) -> bool:
        """Whether samples of the models that it computes with may share what they begin with alike."""
        from miles_lite.train.attention import unpackable
        from miles_lite.train.loading import read_config

        given = self._spec.config.model.hf_checkpoint, self._spec.config.checkpoint.ref_load
        return all(unpackable(read_config(each)) is None for each in given if each is not None)

    def save(self, folder: Path, rollout_id: int) -> None:
        """Begin to write a checkpoint of what there is now. Collective."""
        self.withdraw()  # what was interrupted: the other ranks wait for its end
        self._saver.begin(self._learner, folder, iteration=rollout_id)

    def saved(self) -> None:
        """Wait until it is complete."""
        self._saver.finish()

    def stop(self) -> None:
        """Leave the process group."""
        import torch.distributed as dist

        self._recorder.close()
        if dist.is_initialized():
            dist.destroy_process_group()
