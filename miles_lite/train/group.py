"""The trainer as the driver sees it: ranks, told what to do together.

Invariant: a call returns when every rank has answered, or raises within its bound and says which rank failed and why;
after an error the group is only good for `stop`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from miles_lite.config.choices import Device
from miles_lite.config.options import Config
from miles_lite.config.training import Algorithm
from miles_lite.errors import UnavailableError, UserError, plain
from miles_lite.hooks import Advantage
from miles_lite.model_folder import text_config
from miles_lite.process.addresses import loopback
from miles_lite.process.patience import Patience
from miles_lite.process.remote import Remote, remote
from miles_lite.sample import Rollout
from miles_lite.traces.token_values import TokenValues
from miles_lite.train.batching import make_batches
from miles_lite.train.flops import flops
from miles_lite.train.rank import TrainWorker, WorkerSpec
from miles_lite.weights.bucket import Bucket
from miles_lite.weights.folder import copy_tokenizer, replace_folder

log = logging.getLogger(__name__)

CALL_TIMEOUT = 3600.0
"""Seconds a training step, a checkpoint or an export may take."""

LOOK_SECONDS = 0.2
STOP_TIMEOUT = 10.0
ROOT_CAUSE_SECONDS = 3.0
"""How long after a first failure others are waited for: a dead rank breaks its neighbours' connections first."""


P = ParamSpec("P")
R = TypeVar("R")


class TrainError(RuntimeError):
    """A rank failed."""


class RankSilentError(TrainError, UnavailableError):
    """A rank did not answer in time."""


class RankDiedError(TrainError):
    """A rank has died; `error` is Ray's."""

    def __init__(self, message: str, *, rank: int, error: RayActorError) -> None:
        super().__init__(message)
        self.rank, self.error = rank, error


class TrainGroup:
    """One Ray actor per rank, one scheduling strategy each; the ranks of a data-parallel index get the same batch.

    slot_share   CPUs or GPUs per actor
    environment  variables every actor gets, beyond its node's
    """

    def __init__(
        self,
        config: Config,
        *,
        strategies: Sequence[object],
        slot_share: float,
        device: Device,
        run_dir: Path,
        environment: Mapping[str, str] | None = None,
        look: Callable[[], None] = lambda: None,
        notify: Callable[[str], None] = log.warning,
    ) -> None:
        """`strategies` are Ray's, `run_dir` is named in errors; `look` is called several times a second while a call is
        waited for, and what it raises ends the wait; `notify` is told at half of a wait's bound."""
        self._config = config
        self._run_dir = run_dir
        self._look, self._notify = look, notify
        self._workers: list[Remote[TrainWorker]] = []
        self._offering: list[ObjectRef[list[Bucket]]] = []
        resources = {"num_gpus": slot_share} if device == "cuda" else {"num_cpus": slot_share}
        for rank, strategy in enumerate(strategies):
            spec = worker_spec(config, rank=rank, ranks=len(strategies), device=device)
            name, env = f"train-worker-{rank}", environment or {}
            make = remote(TrainWorker, name=name, env=env, scheduling_strategy=strategy, **resources)
            self._workers.append(make(spec))

    def __repr__(self) -> str:
        return f"TrainGroup({len(self._workers)} ranks)"

    @property
    def ranks(self) -> Sequence[Remote[TrainWorker]]:
        """The actors, by rank."""
        return self._workers

    def start(self, timeout: float) -> int:
        """Build process group, model and optimizer, restore `--load`; the first rollout id to run.

        `timeout` in seconds. Raises TrainError, UserError.
        """
        deadline = time.monotonic() + timeout
        places = self._wait(self._all(TrainWorker.host_and_pid), timeout=timeout, doing="starting")
        hosts = sorted({host for host, _ in places})
        if len(hosts) > 1 and loopback(self._config.hosts.bind_host):
            raise UserError(
                f"train ranks are on several nodes ({', '.join(hosts)}) but --bind-host is "
                f"{self._config.hosts.bind_host}: give an address that other nodes reach, such as 0.0.0.0"
            )
        left = deadline - time.monotonic()
        opening = self._workers[0].call(TrainWorker.rendezvous, left)
        [address] = self._wait([opening], timeout=left, doing="opening the rendezvous")
        left = deadline - time.monotonic()
        return min(self._wait(self._all(TrainWorker.start, address, left), timeout=left, doing="loading the model"))

    def train(
        self,
        rollout_id: int,
        rollouts: Sequence[Rollout],
        advantages: Sequence[Advantage],
        *,
        kept: frozenset[int] = frozenset(),
    ) -> dict[str, float]:
        """Train on rollouts, each of which is trainable and has an advantage; the ranks fetch their samples. Of those
        with the numbers `kept`, `token_values` tells what became of their tokens.

        Metrics `train/…` and `perf/…` are over all ranks. Raises TrainError, UserError.
        """
        batches = make_batches(
            rollout_id,
            rollouts,
            advantages,
            ranks=self._config.dp_size,
            global_batch_size=self._config.global_batch_size,
            options=self._batching,
            flops=flops(text_config(self._config.model.hf_checkpoint)),
        )
        shares = [batches[self._config.dp_rank(rank)] for rank in range(len(self._workers))]
        for rank in self._first_of_batches:
            shares[rank] = replace(shares[rank], kept=kept)
        calls = [worker.call(TrainWorker.train, share) for worker, share in zip(self._workers, shares, strict=True)]
        return self._wait(calls, timeout=CALL_TIMEOUT, doing="training")[0]

    def token_values(self) -> list[ObjectRef[list[TokenValues]]]:
        """What the last `train` made of the tokens of kept rollouts, from each of the ranks that had some. It does not
        wait for them."""
        return [self._workers[rank].call(TrainWorker.token_values) for rank in self._first_of_batches]

    def export_weights(self, folder: Path) -> float:
        """Write a Hugging Face folder that engines load; seconds. `folder` must be one that rank 0 sees."""
        return self.finish_export(self.begin_export(folder))

    def export_model(self, folder: Path) -> None:
        """Write a whole model folder: the weights, and what --hf-checkpoint has beside them (tokenizer, template);
        with --lora-rank the adapters in `adapter/`.

        The template of --chat-template-path takes the place of that one.
        A folder that stood there is replaced at the end. `folder` must be one that rank 0 and this process see.
        """
        draft = folder.with_name(f".{folder.name}.draft")
        self.export_weights(draft)
        if self._config.lora.lora_rank:
            saving = self._all(TrainWorker.export_adapter, draft / "adapter")
            self._wait(saving, timeout=CALL_TIMEOUT, doing="exporting adapters")
        template = self._config.session.chat_template_path
        copy_tokenizer(Path(self._config.model.hf_checkpoint).expanduser(), draft, template=template)
        replace_folder(draft, folder)

    def begin_export(self, folder: Path) -> list[ObjectRef[float]]:
        """The same without waiting: the ranks do it before whatever they are told next. Pass it to `finish_export`."""
        return self._all(TrainWorker.export, folder.absolute())

    def finish_export(self, calls: list[ObjectRef[float]]) -> float:
        """Wait for `begin_export`; seconds it took."""
        return max(self._wait(calls, timeout=CALL_TIMEOUT, doing="exporting weights"))

    def offer_weights(self) -> tuple[list[Bucket], Remote[TrainWorker]]:
        """The buckets in which engines get the weights, and rank 0, from which they do until `withdraw_weights`; the
        other ranks give it their parts meanwhile."""
        first, *self._offering = self._all(TrainWorker.offer)
        [buckets] = self._wait([first], timeout=CALL_TIMEOUT, doing="offering weights")
        return buckets, self._workers[0]

    def withdraw_weights(self) -> None:
        """End what `offer_weights` began."""
        ended = self._workers[0].call(TrainWorker.withdraw)
        self._wait([ended], timeout=CALL_TIMEOUT, doing="withdrawing weights")
        self._wait(self._offering, timeout=CALL_TIMEOUT, doing="sending weights")

    def save(self, rollout_id: int) -> None:
        """Write `iter_…` under `--save`, and wait until it is complete."""
        self.begin_save(rollout_id)
        self.finish_save()

    def begin_save(self, rollout_id: int) -> None:
        """The same while the ranks go on: what is written is what they have now."""
        if self._config.checkpoint.save is None:
            raise UserError("no folder for checkpoints: give --save")
        folder = Path(self._config.checkpoint.save).expanduser().absolute()
        saving = self._all(TrainWorker.save, folder, rollout_id)
        self._wait(saving, timeout=CALL_TIMEOUT, doing="saving a checkpoint")

    def finish_save(self) -> None:
        """Wait until what was begun is complete."""
        self._wait(self._all(TrainWorker.saved), timeout=CALL_TIMEOUT, doing="saving a checkpoint")

    def save_hf(self, rollout_id: int) -> None:
        """Write the model folder that `--save-hf` names for this rollout, if it names one."""
        pattern = self._config.checkpoint.save_hf
        if pattern is not None:
            self.export_model(Path(pattern.replace("{rollout_id}", str(rollout_id))).expanduser().absolute())

    def stop(self) -> None:
        """End all ranks, within STOP_TIMEOUT; may be called twice."""
        workers, self._workers = self._workers, []
        settle([worker.call(TrainWorker.stop) for worker in workers], timeout=STOP_TIMEOUT / 2)
        for worker in workers:
            worker.kill()
        settle([worker.ready() for worker in workers], timeout=STOP_TIMEOUT / 2)

    @property
    def _first_of_batches(self) -> range:
        """Of the ranks that train the same batch, the first."""
        return range(0, len(self._workers), self._config.parallelism.ranks_per_batch)

    @cached_property
    def _batching(self) -> Algorithm:
        """Samples of a model that cannot be packed share nothing."""
        algorithm = self._config.algorithm
        if algorithm.disable_tree_training:
            return algorithm
        together = self._config.compute.attn_implementation == "auto" and self._packs()
        return replace(algorithm, disable_tree_training=not together)

    def _packs(self) -> bool:
        [told] = self._wait([self._workers[0].call(TrainWorker.packs)], timeout=CALL_TIMEOUT, doing="looking at models")
        return told

    def _all(
        self, method: Callable[Concatenate[TrainWorker, P], R], *args: P.args, **options: P.kwargs
    ) -> list[ObjectRef[R]]:
        return [worker.call(method, *args, **options) for worker in self._workers]

    def _wait(self, calls: Sequence[ObjectRef[R]], *, timeout: float, doing: str) -> list[R]:
        """All answers in rank order. Raises TrainError, or the UserError of a rank."""
        waiting, patience = list(calls), Patience(f"train ranks that are {doing}", timeout, self._notify)
        while waiting:
            self._look()
            done, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
            if not done and patience.over():
                ranks = ", ".join(str(calls.index(call)) for call in waiting)
                raise RankSilentError(
                    f"train rank {ranks} did not finish {doing} within {timeout:.0f} s; see Ray's dashboard for what "
                    f"it does, and {self._run_dir} for the run's logs"
                )
            if done and failure(done[0]) is not None:
                settle(waiting, timeout=ROOT_CAUSE_SECONDS)
                raise root_cause(calls, doing=doing)
        return ray.get(calls)


def worker_spec(config: Config, *, rank: int, ranks: int, device: Device) -> WorkerSpec:
    """What one rank is told; without --train-threads the ranks of a node share its cores."""
    cores = len(os.sched_getaffinity(0))
    local = loopback(config.hosts.bind_host)
    return WorkerSpec(
        config=config,
        rank=rank,
        ranks=ranks,
        device=device,
        host="127.0.0.1" if local else "",
        threads=config.optimizer.train_threads or max(1, cores // config.topology.actor_num_gpus_per_node),
    )


def settle(calls: Sequence[Awaitable[object]], *, timeout: float) -> None:
    """Wait until all calls have ended, one way or the other, or `timeout` seconds have passed."""
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=timeout)


def failure(call: ObjectRef[R]) -> Exception | None:
    """The error of a call that has ended with one; None when it succeeded or still runs."""
    if not ray.wait([call], timeout=0)[0]:
        return None
    try:
        ray.get(call)
    except (RayActorError, RayTaskError) as error:
        return error
    return None


def root_cause(calls: Sequence[ObjectRef[R]], *, doing: str) -> Exception:
    """The error that explains the others: a user's mistake first, then a dead rank, then whatever came."""
    failures = {rank: error for rank, call in enumerate(calls) if (error := failure(call)) is not None}
    for error in failures.values():
        if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
            return error.cause
    rank, error = min(failures.items(), key=lambda item: not isinstance(item[1], RayActorError))
    if isinstance(error, RayActorError):
        raised: TrainError = RankDiedError(f"train rank {rank} died while {doing}: {error}", rank=rank, error=error)
    else:
        raised = TrainError(f"train rank {rank} failed while {doing}: {plain(error)}")
    raised.__cause__ = error
    return raised
