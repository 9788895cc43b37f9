"""Supervised fine-tuning: `miles-lite train --loss-type sft_loss`, the trainer without engines or rollouts.

Invariant: the same ranks, optimizer, batches and checkpoints as in reinforcement; the folder that it ends with is a
whole model folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from miles_lite.config.options import Config
from miles_lite.job.due import Due
from miles_lite.job.lifetime import Lifetime, lifetime
from miles_lite.job.log import open_log
from miles_lite.job.precheck import check_folders
from miles_lite.job.trainer import start_ranks
from miles_lite.model_folder import context_length
from miles_lite.report import metric_names as names
from miles_lite.train.examples import Examples


def imitate(config: Config) -> Path:
    """Train on the rows of --prompt-data; the model folder written at the end. Raises UserError, RunLostError."""
    with lifetime(config) as life:
        model = check_folders(config)
        examples = Examples(config, context=context_length(model, config.context.rollout_max_context_len))
        return _train(config, life, examples)


def _train(config: Config, life: Lifetime, examples: Examples) -> Path:
    slots = config.topology.world_size
    alone = dataclasses.replace(config.topology, colocate=True, rollout_num_gpus=slots, rollout_num_gpus_per_engine=1)
    trainer, first = start_ranks(config, life, life.connect(alone, train=True))
    sinks = open_log(config, life, resumed=first > 0)
    life.reached.of = examples.steps
    if first > 0:
        life.reached.trained = life.reached.saved = first - 1
    due = Due(config, examples.steps)
    for step in range(first, examples.steps):
        rollouts = examples.rollouts(step)
        metrics = trainer.train(step, rollouts, [0.0] * len(rollouts))
        life.reached.trained = step
        sinks.log(metrics, step=step, step_key=names.TRAIN_STEP)
        print(f"step {step + 1}/{examples.steps}  loss {metrics['train/loss']:.4f}", flush=True)
        if due.save(after=step):
            trainer.save(step)
            life.reached.saved = step
            trainer.save_hf(step)
    folder = config.run_dir / "model"
    trainer.export_model(folder)
    return folder
