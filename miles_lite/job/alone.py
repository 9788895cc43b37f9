"""The trainer without engines: on supervised examples (`--loss-type sft_loss`), or on rollouts that another run saved
(`--load-debug-rollout-data`).

Invariant: the same ranks, optimizer, batches and checkpoints as in a run that rolls out; the folder that it ends with
is a whole model folder.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.hooks import Advantage
from miles_lite.job.attempts import attempts
from miles_lite.job.due import Due
from miles_lite.job.interrupted import SaveWhenInterrupted
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.log import open_log
from miles_lite.job.precheck import check_folders
from miles_lite.job.trainer import start_ranks
from miles_lite.model_folder import context_length
from miles_lite.report import metric_names as names
from miles_lite.rollout import dump
from miles_lite.sample import Rollout
from miles_lite.train.advantages import estimate
from miles_lite.train.examples import Examples

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

    def __init__(self, config: Config, *, context: int) -> None:
        """Raises UserError naming the line of a row that cannot be trained."""
        self._examples = Examples(config, context=context)
        self.steps = self._examples.steps

    def step(self, number: int) -> Step:
        rollouts = self._examples.rollouts(number)
        return rollouts, [0.0] * len(rollouts)


@dataclass(frozen=True)
class Saved:
    """The rollouts of --load-debug-rollout-data, as many steps as --num-rollout says, else as there are."""

    config: Config
    pattern: str

    @property
    def steps(self) -> int:
        there = next(step for step in itertools.count() if not dump.path_of(self.pattern, step).is_file())
        return self.config.rollouts.num_rollout or there

    def step(self, number: int) -> Step:
        path = dump.path_of(self.pattern, number)
        rollouts, advantages = estimate(dump.read(path), self.config.algorithm)
        if not rollouts:
            raise UserError(f"--load-debug-rollout-data {path}: none of its rollouts can be trained")
        return rollouts, advantages


def train_alone(config: Config) -> Path:
    """The model folder written at the end. Raises UserError, RunLostError."""
    with attempts(config) as tries:
        model = check_folders(config)
        pattern = config.debugging.load_debug_rollout_data
        material: Material
        if pattern is not None:
            material = Saved(config, pattern)
            material.step(0)
        else:
            material = Supervised(config, context=context_length(model, config.context.rollout_max_context_len))
        return tries.until_done(lambda again, life: _train(again, life, material))


def _train(config: Config, life: Lifetime, material: Material) -> Path:
    slots = config.topology.world_size
    alone = dataclasses.replace(config.topology, colocate=True, rollout_num_gpus=slots, rollout_num_gpus_per_engine=1)
    trainer, first = start_ranks(config, life, life.connect(alone, train=True))
    sinks = open_log(config, life, resumed=first > 0)
    total = material.steps
    life.stands(first=first, of=total)
    due = Due(config, total)
    interrupted = SaveWhenInterrupted(life, trainer.save if config.checkpoint.save else None)
    for step in range(first, total):
        rollouts, advantages = material.step(step)
        with interrupted:
            metrics = trainer.train(step, rollouts, advantages)
        life.reached.trained = step
        sinks.log(metrics | {names.RESTARTS: life.course.restarts}, step=step, step_key=names.TRAIN_STEP)
        print(f"step {step + 1}/{total}  loss {metrics['train/loss']:.4f}", flush=True)
        if due.save(after=step):
            trainer.save(step)
            life.reached.saved = step
            trainer.save_hf(step)
    folder = config.run_dir / "model"
    trainer.export_model(folder)
    return folder
