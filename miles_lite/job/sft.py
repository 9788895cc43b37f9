"""Supervised fine-tuning: `miles-lite train --loss-type sft_loss`, the trainer without engines or rollouts.

Invariant: the same ranks, optimizer, batches and checkpoints as in reinforcement; the folder that it ends with is a
whole model folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from miles_lite.config.options import Config
from miles_lite.errors import RunLostError
from miles_lite.job.claim import claimed
from miles_lite.job.due import Due
from miles_lite.job.precheck import check_folders
from miles_lite.job.ranks import START_TIMEOUT, make_ranks
from miles_lite.job.watch import Watch, death_in
from miles_lite.model_folder import context_length
from miles_lite.observe.sinks import open_sinks
from miles_lite.process.post_mortem import DiedError, obituary, out_of_memory_kills
from miles_lite.process.stopping import Interrupts
from miles_lite.stack.cluster import connected
from miles_lite.stack.placement import place
from miles_lite.train.checkpoint import latest_iteration
from miles_lite.train.examples import Examples
from miles_lite.train.group import RankDiedError, TrainGroup


def imitate(config: Config) -> Path:
    """Train on the rows of --prompt-data; the model folder written at the end. Raises UserError."""
    model = check_folders(config)
    examples = Examples(config, context=context_length(model, config.context.rollout_max_context_len))
    run_dir = config.run_dir
    killed_before = out_of_memory_kills()
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(run_dir))
        config.write()
        ray_logs = stack.enter_context(connected(config.cluster.ray_address))
        watch = Watch(stack.enter_context(Interrupts()), hint=f"see {run_dir}")
        ranks = config.topology.world_size
        alone = dataclasses.replace(
            config.topology, colocate=True, rollout_num_gpus=ranks, rollout_num_gpus_per_engine=1
        )
        layout = place(alone, train=True)
        trainer = make_ranks(config, layout, watch=watch, parts=stack)
        folder = run_dir / "model"
        try:
            _train(config, trainer, examples)
            trainer.export_model(folder)
        except (DiedError, RankDiedError) as error:
            died, save = death_in(error), config.checkpoint.save
            assert died is not None
            saved = (save, None if save is None else latest_iteration(Path(save).expanduser()))
            lost = "What was trained since"
            raise RunLostError(
                obituary(died, logs=ray_logs, killed_before=killed_before, lost=lost, saved=saved)
            ) from error
        return folder


def _train(config: Config, trainer: TrainGroup, examples: Examples) -> None:
    first = trainer.start(START_TIMEOUT)
    due = Due(config, examples.steps)
    with contextlib.closing(open_sinks(config.logging, config=config.as_dict(), run_dir=config.run_dir)) as sinks:
        for step in range(first, examples.steps):
            rollouts = examples.rollouts(step)
            metrics = trainer.train(step, rollouts, [0.0] * len(rollouts))
            sinks.log(metrics, step=step, step_key="train/step")
            print(f"step {step + 1}/{examples.steps}  loss {metrics['train/loss']:.4f}", flush=True)
            if due.save(after=step):
                trainer.save(step)
                trainer.save_hf(step)
