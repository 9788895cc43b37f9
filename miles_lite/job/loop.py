"""The training loop: the one page that says rollout, train, sync, evaluate, save.

Invariant: the metrics of a rollout are logged before its batches reach the trainer, and the engines serve weight
version n exactly when n rollouts have been trained.
"""

from __future__ import annotations

from miles_lite.config.options import Config
from miles_lite.job.attempts import attempts
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.precheck import check_inputs, forking_early
from miles_lite.job.run import rolling_out, training
from miles_lite.observe.summary import Summary


def train(config: Config) -> Summary:
    """Run the whole job. Returns the summary that is also written to `run_dir/summary.json`. Raises UserError,
    RunLostError."""
    with attempts(config) as tries, forking_early(config):
        check_inputs(config)
        return tries.until_done(_train)


def _train(config: Config, life: Lifetime) -> Summary:
    run = training(config, life)
    run.sync(run.first)
    if run.due.evaluation():
        run.evaluate(run.first)
    for rollout_id in range(run.first, run.num_rollout):
        with run.step(rollout_id):
            generated = run.generate(rollout_id)
            run.train(rollout_id, generated)
            run.sync(rollout_id + 1)
            if run.due.evaluation(after=rollout_id):
                run.evaluate(rollout_id + 1)
            if run.due.save(after=rollout_id):
                run.save(rollout_id)
    return run.summary()


def rollout(config: Config) -> dict[str, float]:
    """Generate and score `num_rollout` batches without training; metrics go to the run folder."""
    with attempts(config) as tries:
        check_inputs(config, trains=False)
        return tries.until_done(_rollout)


def _rollout(config: Config, life: Lifetime) -> dict[str, float]:
    run = rolling_out(config, life)
    metrics: dict[str, float] = {}
    for rollout_id in range(run.num_rollout):
        with run.step(rollout_id):
            metrics = run.generate(rollout_id).metrics
    return metrics
