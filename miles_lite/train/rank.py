"""One data-parallel rank, as a Ray actor.

Invariant: a worker does what its group tells it, in the order it tells it; the calls marked collective are made on
all ranks or none. What it waits for beyond its own arithmetic are the other ranks, `COLLECTIVE_TIMEOUT` at most.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist

from miles_lite.config.options import Config
from miles_lite.process.addresses import actor_label
from miles_lite.train import checkpoint
from miles_lite.train.batching import Batch, Place, fetch
from miles_lite.train.learner import Learner
from miles_lite.train.parallel import Replicated, Sharded, join, open_store, reach_store
from miles_lite.train.policy import Policy, load_model
from miles_lite.weights.bucket import Bucket, Meeting
from miles_lite.weights.folder import write_folder
from miles_lite.weights.sender import Group, Sender, published_state

COLLECTIVE_TIMEOUT = 600.0
"""Seconds one rank may keep the others waiting."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a rank is. `host` is "" for the node's own address, else the loopback name all ranks share."""

    config: Config
    rank: int
    ranks: int
    device: Literal["cpu", "cuda"]
    host: str
    threads: int


class TrainWorker:
    """A rank of a TrainGroup."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._device = torch.device(spec.device)
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        self._store: Any = None
        self._sender: Sender | None = None
        self._group: Group | None = None

    def __repr__(self) -> str:
        return actor_label("TrainWorker", f"{self._spec.rank}/{self._spec.ranks}", self._spec.device)

    def whereabouts(self) -> tuple[str, int]:
        """Host name and process id."""
        return socket.gethostname(), os.getpid()

    def rendezvous(self, timeout: float) -> tuple[str, int]:
        """Rank 0: open the store that all ranks meet at; its host and port."""
        host = self._spec.host or str(ray.util.get_node_ip_address())
        self._store = open_store(host, ranks=self._spec.ranks, timeout=timeout)
        return host, self._store.port

    def start(self, address: tuple[str, int], timeout: float) -> int:
        """Join the others, build model and optimizer, restore a checkpoint; the first rollout id to run. Collective."""
        spec, config = self._spec, self._spec.config
        host, port = address
        self._store = self._store or reach_store(host, port, ranks=spec.ranks, timeout=timeout)
        join(self._store, rank=spec.rank, ranks=spec.ranks, device=self._device, host=host, timeout=COLLECTIVE_TIMEOUT)
        checkpoint.seed_everything(config.seeding.seed + spec.rank)
        self._learner = build_learner(config, device=self._device)
        if config.checkpoint.load is None:
            return 0
        loaded = checkpoint.load(self._learner, Path(config.checkpoint.load).expanduser())
        return 0 if loaded is None else loaded + 1

    def train(self, batch: Batch[Place]) -> dict[str, float]:
        """Fetch the batch's samples; then see Learner.train. Collective."""
        return self._learner.train(fetch(batch))

    def export(self, folder: Path) -> float:
        """Write a Hugging Face folder (rank 0 does); seconds. Collective."""
        begin = time.perf_counter()
        policy = self._learner.policy
        state = self._learner.strategy.full_state(policy)
        if self._spec.rank == 0:
            write_folder(policy.model, state, folder, dtype=self._dtype())
        return time.perf_counter() - begin

    def offer(self) -> list[Bucket]:
        """Gather the weights on rank 0, to be sent from there; its buckets, [] elsewhere. Collective."""
        policy = self._learner.policy
        state = self._learner.strategy.full_state(policy)
        if self._spec.rank != 0:
            return []
        published = published_state(policy.model, state, self._dtype())
        limit = self._spec.config.updates.update_weight_buffer_size
        self._sender = Sender(published, device=self._device, bucket_bytes=limit)
        return self._sender.buckets

    def share_bucket(self, index: int, copies: int) -> list[bytes]:
        """Rank 0, after `offer`: see Sender.share."""
        return self._offered().share(index, copies=copies)

    def broadcast_bucket(self, index: int) -> None:
        """Rank 0, after `offer` and `join_group`: see Sender.broadcast."""
        assert self._group is not None, "join_group comes first"
        self._offered().broadcast(index, self._group)

    def open_group(self, world_size: int) -> Meeting:
        """Rank 0: a group for `broadcast_bucket`, to be joined by engines with the ranks from 1."""
        self.close_group()
        host = self._spec.host or str(ray.util.get_node_ip_address())
        self._group = Group(host=host, world_size=world_size, device=self._device)
        return self._group.meeting

    def join_group(self) -> None:
        """Rank 0: wait until all are in the group."""
        assert self._group is not None, "open_group comes first"
        self._group.join()

    def close_group(self) -> None:
        """Rank 0: leave it."""
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def withdraw(self) -> None:
        """Forget what was offered."""
        self._sender = None

    def _offered(self) -> Sender:
        assert self._sender is not None, "offer comes first"
        return self._sender

    def _dtype(self) -> torch.dtype:
        """What engines compute in."""
        return torch.float32 if self._spec.device == "cpu" else torch.bfloat16

    def save(self, folder: Path, rollout_id: int) -> None:
        """Write a checkpoint. Collective."""
        checkpoint.save(self._learner, folder, iteration=rollout_id)

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def build_learner(config: Config, *, device: torch.device) -> Learner:
    """Policy, reference and optimizer on one device; the process group must exist."""
    algorithm, rollouts = config.algorithm, config.rollouts
    reference = None
    if algorithm.use_kl_loss:
        reference = Policy(load_model(config.checkpoint.ref_load or config.model.hf_checkpoint))
        reference.requires_grad_(False)
    updates_per_rollout = rollouts.rollout_batch_size * rollouts.n_samples_per_prompt // config.global_batch_size
    return Learner(
        policy=Policy(load_model(config.model.hf_checkpoint)),
        reference=reference,
        strategy=Sharded(device) if device.type == "cuda" else Replicated(),
        device=device,
        algorithm=algorithm,
        options=config.optimizer,
        total_updates=None if rollouts.num_rollout is None else rollouts.num_rollout * updates_per_rollout,
    )
