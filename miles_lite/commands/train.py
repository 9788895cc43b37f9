"""`miles-lite train`: rollouts, training, weights back; or imitation of rows that are there already."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from miles_lite.config.options import parse
from miles_lite.job.loop import train
from miles_lite.observe.summary import print_summary


def main(argv: Sequence[str]) -> int:
    """Parse flags and train; the exit code. Raises UserError."""
    config, leftovers = parse(argv)
    leftovers.show_ignored()
    for remark in config.parallelism.remarks():
        print(remark, file=sys.stderr)
    if config.algorithm.imitates:
        from miles_lite.job.sft import imitate

        print(f"model: {imitate(config)}")
        return 0
    summary = train(config)
    print_summary(summary, run_dir=config.run_dir, png=config.run_dir / "reward.png")
    return 0
