"""`miles-lite train`: rollouts, training, weights back; or one half of it alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from miles_lite.config.options import Config, parse
from miles_lite.config.schema import as_yaml, schema
from miles_lite.job.loop import rollout, train
from miles_lite.observe.summary import print_summary
from miles_lite.observe.wandb_sink import wandb_dir, wandb_folder


def main(
    argv: Sequence[str], *, prog: str = "miles-lite train", settled: Callable[[Config], Config] = Config.check
) -> int:
    """Parse flags and train; the exit code. `settled` decides what the flags leave open. Raises UserError."""
    if "--print-config-schema" in argv:
        print(json.dumps(schema(Config), indent=2))
        return 0
    config, leftovers = parse(argv, prog=prog)
    config = settled(config)
    if config.files.print_config:
        print(as_yaml(config.as_dict()), end="")
        return 0
    leftovers.show_ignored()
    for remark in config.parallelism.notices():
        print(remark, file=sys.stderr)
    if config.algorithm.imitates or config.debugging.trains_alone:
        from miles_lite.job.alone import train_alone

        print(f"model: {train_alone(config)}")
        return 0
    if config.debugging.debug_rollout_only:
        rollout(config)
        print(f"metrics: {config.run_dir / 'metrics.jsonl'}")
        return 0
    summary = train(config)
    wandb = wandb_folder(wandb_dir(config.logging, config.run_dir)) if config.logging.use_wandb else None
    print_summary(summary, run_dir=config.run_dir, png=config.run_dir / "reward.png", wandb=wandb)
    return 0
