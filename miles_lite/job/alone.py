"""The trainer without engines: on supervised examples (`--loss-type sft_loss`), or on rollouts that another run saved
(`--load-debug-rollout-data`).

Invariant: the same ranks, optimizer, batches and checkpoints as in a run that rolls out; the folder that it ends with
is a whole model folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.hooks import Advantage, check_hooks, hooks_of
from miles_lite.job.attempts import attempts
from miles_lite.job.due import Due
from miles_lite.job.interrupted import SaveWhenInterrupted
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.log import open_log
from miles_lite.job.precheck import check_folders, check_trainer, forking_early
from miles_lite.job.trainer import start_ranks
from miles_lite.model_folder import context_length
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.rollout import dump
from miles_lite.sample import Rollout
from miles_lite.train.advantages import estimate
from miles_lite.train.examples import Examples
from miles_lite.train.loading import read_config, vocabulary

log = logging.getLogger(__name__)

Step = tuple[Sequence[Rollout], Sequence[Advantage]]
"""The trainable rollouts of a step, and the advantage of each."""


class Material(Protocol):
    """What is trained on."""

    @property
    def steps(self) -> int:
        """Of the run."""

    def step(self, number: int) -> Step:
        """Step `number`'s, from 0. Raises UserError when it is not there."""


class Supervised:
    """Rows of --prompt-data, which nobody judges."""

    def __init__(self, config: Config, *, model: Path) -> None:
        """Raises UserError naming the line of a row that cannot be trained."""
        context = context_length(model, config.context.rollout_max_context_len)
        self._examples = Examples(config, context=context, vocabulary=vocabulary(read_config(model)))
        self.steps = self._examples.steps

    def step(self, number: int) -> Step:
        rollouts = self._examples.rollouts(number)
        return rollouts, [0.0] * len(rollouts)


@dataclass(frozen=True)
class Saved:
    """The rollouts of --load-debug-rollout-data: as many steps as there are, at most --num-rollout."""

    config: Config
    pattern: str
    vocabulary: int

    @cached_property
    def steps(self) -> int:
        there = next(step for step in itertools.count() if not dump.path_of(self.pattern, step).is_file())
        return min(self.config.rollouts.num_rollout or there, there)

    def step(self, number: int) -> Step:
        path, algorithm = dump.path_of(self.pattern, number), self.config.algorithm
        rollouts, advantages = estimate(dump.read(path, vocabulary=self.vocabulary), algorithm, self.config.overlong)
        if not rollouts:
            raise UserError(f"--load-debug-rollout-data {path}: none of its rollouts can be trained")
        names = {rollout.teacher for rollout in rollouts if algorithm.opd_teacher_key is not None}
        if strange := names - set(algorithm.teachers):
            known = ", ".join(algorithm.teachers)
            raise UserError(
                f"--load-debug-rollout-data {path}: a rollout's teacher is {sorted(strange)[0]!r}, and --opd-teacher "
                f"knows {known}"
            )
        return rollouts, advantages

    def check(self) -> None:
        """Read every step, and say which of --num-rollout there are none of. Raises UserError naming a file that cannot
        be trained on."""
        for number in range(max(1, self.steps)):
            self.step(number)
        wanted = self.config.rollouts.num_rollout or self.steps
        if self.steps < wanted:
            last = dump.path_of(self.pattern, self.steps - 1)
            log.warning(
                "--num-rollout is %d: the run ends after step %d, whose file %s is the last", wanted, self.steps, last
            )


def train_alone(config: Config) -> Path:
    """The model folder written at the end. Raises UserError, RunLostError."""
    with attempts(config) as tries, forking_early(config):
        model = check_folders(config)
        check_trainer(config)
        check_hooks(hooks_of(config.algorithm))
        pattern = config.debugging.load_debug_rollout_data
        material: Material
        if pattern is not None:
            material = saved = Saved(config, pattern, vocabulary(read_config(model)))
            saved.check()
        else:
            material = Supervised(config, model=model)
        return tries.until_done(lambda again, life: _train(again, life, material))


def _train(config: Config, life: Lifetime, material: Material) -> Path:
    slots = config.topology.world_size
    alone = dataclasses.replace(config.topology, colocate=True, rollout_num_gpus=slots, rollout_num_gpus_per_engine=1)
    trainer, first = start_ranks(config, life, life.connect(alone, train=True))
    sinks = open_log(config, life, resumed=first > 0)
    total = material.steps
    life.mark_ready(first=first, of=total)
    due = Due(config, total)
    interrupted = SaveWhenInterrupted(life, trainer.save if config.checkpoint.save else None)
    for step in range(first, total):
        rollouts, advantages = material.step(step)
        with interrupted.step():
            metrics = trainer.train(step, rollouts, advantages)
        life.reached.trained = step
        sinks.log(metrics | {names.RESTARTS: life.course.restarts}, step=step, step_key=names.TRAIN_STEP)
        print(f"step {step + 1}/{total}  loss {metrics['train/loss']:.4f}", flush=True)
        if due.save(after=step):
            began = time.monotonic()
            trainer.save(step)
            life.reached.saved = step
            where, seconds = str(config.checkpoint.save), time.monotonic() - began
            life.course.events.record(Kind.SAVE, where, step=step, seconds=seconds)
            trainer.save_hf(step)
    folder = config.run_dir / "model"
    trainer.export_model(folder)
    return folder
