"""What tests of options share: the flags that a run needs, and the file that freezes all."""

from __future__ import annotations

from pathlib import Path

NEEDED = ["--hf-checkpoint", "m", "--prompt-data", "p", "--rollout-batch-size", "4", "--num-rollout", "3"]
SURFACE = Path(__file__).parent / "cli_surface.txt"
