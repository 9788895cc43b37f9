"""What a run trains with, and how weights go from there to the engines.

Invariant: engines that start anew find the current weights in a folder, the two last of which are kept; at most one
checkpoint is being written.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from ray import ObjectRef

from miles_lite.config.choices import TransferMode
from miles_lite.config.options import Config
from miles_lite.job.interrupted import SaveWhenInterrupted
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.ranks import START_TIMEOUT, make_ranks
from miles_lite.job.servers import CALL_TIMEOUT, Servers
from miles_lite.process import tracing
from miles_lite.rollout.manager import RolloutManager
from miles_lite.sample import Group
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import Layout
from miles_lite.train.advantages import estimate
from miles_lite.train.group import TrainGroup
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Delivered
from miles_lite.weights.folder import remove_before, version_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

KEPT_WEIGHTS = 2


def start_ranks(config: Config, life: Lifetime, layout: Layout) -> tuple[TrainGroup, int]:
    """The ranks, ready, and the first rollout to run. Raises UserError, TrainError."""
    ranks = make_ranks(config, layout, watch=life.watch, parts=life.parts)
    return ranks, ranks.start(START_TIMEOUT)


class Trainer:
    """Trains, brings the weights to the servers, saves; and saves once more when the run is interrupted."""

    def __init__(
        self,
        config: Config,
        life: Lifetime,
        ranks: TrainGroup,
        servers: Servers,
        exported: Callable[[int, float], None],
    ) -> None:
        """`exported` is told the version and seconds of each folder that was written."""
        self._config, self._life, self._ranks, self._servers = config, life, ranks, servers
        self._exported = exported
        self._saving: int | None = None
        self._exporting: tuple[Path, list[ObjectRef[float]]] | None = None
        self._interrupted = SaveWhenInterrupted(life, self._save_now if config.checkpoint.save else None)

    def train(
        self, rollout_id: int, groups: Sequence[Group], *, kept: frozenset[int] = frozenset()
    ) -> tuple[dict[str, float], tuple[float, float]]:
        """Metrics of one training step on a rollout's groups, and from when until when it took. The trajectories of the
        rollouts with the numbers `kept` get what it made of their tokens, while the run goes on."""
        if self._config.updates.offload_rollout:
            self._engines(Fleet.offload)
        began = time.time()
        with self._interrupted.step():
            rollouts, values = estimate(groups, self._config.algorithm, self._config.overlong)
            metrics = self._ranks.train(rollout_id, rollouts, values, kept=kept)
        self._life.reached.trained = rollout_id
        told = self._ranks.token_values() if kept else []
        advantages = {rollout.index: float(np.mean(value)) for rollout, value in zip(rollouts, values, strict=True)}
        self._servers.call_nowait(RolloutManager.credit, rollout_id, advantages, told)
        return metrics, (began, time.time())

    def sync(self, version: int) -> float:
        """Bring every engine to the trainer's weights, as `version`; seconds.

        The folder that holds them too is written before (mode disk), or while the next rollout runs.
        """
        self.finish_export()
        with tracing.span("weight update", version=version) as note:
            delivered = self._deliver(version)
            note(seconds=delivered.seconds)
        self._servers.call(RolloutManager.updated, version)
        return delivered.seconds

    def _deliver(self, version: int) -> Delivered:
        options = self._config.updates
        if options.offload_rollout:
            self._engines(Fleet.onload)
        folder = self._config.run_dir / "weights" / f"v{version}"
        update = WeightUpdate(str(folder), version, options.pause_generation_mode)
        if options.update_weight_transfer_mode == TransferMode.DISK:
            self._begin_export(folder)
            delivered = self._through_folder(update)
        else:
            delivered = self._in_buckets(update)
            self._begin_export(folder)
            if delivered.behind:
                log.warning("version %d did not reach %s: loading its folder instead", version, delivered.behind)
                delivered = self._through_folder(update)
        if options.check_weight_update_equal:
            self.finish_export()
            self._engines(Fleet.verify_weights)
        return delivered

    def _engines(self, method: Callable[Concatenate[Fleet, P], Awaitable[R]], *args: P.args, **options: P.kwargs) -> R:
        """What a method of the engines' fleet returns."""
        doing = self._servers.started.fleet.call(method, *args, **options)
        return self._life.watch.wait(doing, f"the fleet's {method.__name__}", CALL_TIMEOUT)

    def _through_folder(self, update: WeightUpdate) -> Delivered:
        self.finish_export()
        return self._engines(Fleet.update_weights, update)

    def _in_buckets(self, update: WeightUpdate) -> Delivered:
        buckets, first_rank = self._ranks.offer_weights()
        streamed = dataclasses.replace(update, buckets=tuple(buckets))
        delivered = self._engines(Fleet.update_weights, streamed, first_rank)
        self._ranks.withdraw_weights()
        return delivered

    def _begin_export(self, folder: Path) -> None:
        self._exporting = (folder, self._ranks.begin_export(folder))

    def finish_export(self) -> None:
        """Wait for the folder that is being written, if any, and remove those before the last two up to it."""
        exporting, self._exporting = self._exporting, None
        if exporting is None:
            return
        folder, calls = exporting
        seconds = self._ranks.finish_export(calls)
        remove_before(folder, keep=KEPT_WEIGHTS)
        self._exported(version_of(folder), seconds)

    def save(self, rollout_id: int) -> None:
        """Checkpoint trainer and rollout state of `rollout_id`, the trainer's while the next rollout runs; then the
        model folder of --save-hf."""
        self.finish_save()
        self._servers.call(RolloutManager.save, self._config.checkpoint.save or "", rollout_id)
        self._ranks.begin_save(rollout_id)
        self._saving = rollout_id
        self._ranks.save_hf(rollout_id)

    def finish_save(self) -> None:
        """Wait until the checkpoint that is being written, if any, is complete."""
        saving, self._saving = self._saving, None
        if saving is not None:
            self._ranks.finish_save()
            self._life.reached.saved = saving

    def _save_now(self, rollout_id: int) -> None:
        self.finish_save()
        if rollout_id != self._life.reached.saved:
            self.save(rollout_id)
            self.finish_save()
