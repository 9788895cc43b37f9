"""`miles-lite rollout`: generate and score without training, with the flags of `miles-lite train`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from miles_lite.config.options import Config, parse
from miles_lite.config.schema import as_yaml, schema
from miles_lite.job.loop import rollout


def main(argv: Sequence[str]) -> int:
    """Parse flags and roll out; the exit code. Raises UserError."""
    if "--print-config-schema" in argv:
        print(json.dumps(schema(Config), indent=2))
        return 0
    config, leftovers = parse(argv, prog="miles-lite rollout")
    if config.files.print_config:
        print(as_yaml(config.as_dict()), end="")
        return 0
    leftovers.show_ignored()
    metrics = rollout(config)
    for name in sorted(metrics):
        print(f"{name:50s} {metrics[name]:.4g}")
    print(f"metrics: {config.run_dir / 'metrics.jsonl'}")
    return 0
