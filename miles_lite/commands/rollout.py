"""`miles-lite rollout`: generate and score without training, with the flags of `miles-lite train`."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.options import parse
from miles_lite.job.loop import rollout


def main(argv: Sequence[str]) -> int:
    """Parse flags and roll out; the exit code. Raises UserError."""
    config, leftovers = parse(argv, prog="miles-lite rollout")
    leftovers.show_ignored()
    metrics = rollout(config)
    for name in sorted(metrics):
        print(f"{name:50s} {metrics[name]:.4g}")
    print(f"metrics: {config.run_dir / 'metrics.jsonl'}")
    return 0
