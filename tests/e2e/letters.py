"""The task of examples/minimal.py: say words with vowels; with an agent whose infrastructure fails as often as its
prompt's metadata says, and nearly always while there is a file that it names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from miles_lite.errors import RolloutError
from miles_lite.hooks import load_hook
from miles_lite.init_model.build import init_model
from tests.e2e.job import ROOT

EXAMPLE = ROOT / "examples" / "minimal.py"
WORDS = [f"say {first}{second} to me" for first in "bcdfgh" for second in "aeiou"]
INCIDENT = 0.9


async def agent(base_url: str, prompt: Any, metadata: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Raises RolloutError: the environment's container was lost."""
    minimal: Any = load_hook(f"{EXAMPLE}:agent", flag="--custom-agent-function-path")
    said: dict[str, Any] = await minimal(base_url=base_url, prompt=prompt, metadata=metadata, **more)
    share = INCIDENT if Path(metadata["incident"]).exists() else metadata["failures"]
    if random.random() < share:
        raise RolloutError("environment", "the container was lost")
    return said


def flags(folder: Path, *extra: str, failures: float | None = None, experts: int = 0) -> list[str]:
    """Of a run in `folder`, whose model and prompts are made; with `failures`, that share of rollouts breaks."""
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "intermediate": 128, "vocab_size": 300}
    init_model(folder / "model", corpus=WORDS, **sizes, experts=experts, expert_intermediate=64)
    metadata = {"failures": failures, "incident": str(folder / "incident")}
    rows = [{"input": word, "label": "aeiou", "metadata": metadata} for word in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    who = f"{EXAMPLE}:agent" if failures is None else f"{__file__}:agent"
    given = ["--hf-checkpoint", str(folder / "model"), "--prompt-data", str(folder / "prompts.jsonl")]
    given += ["--label-key", "label", "--custom-agent-function-path", who, "--custom-rm-path", f"{EXAMPLE}:reward"]
    given += ["--run-dir", str(folder / "run"), "--device", "cpu", "--colocate", "--rollout-num-gpus", "1"]
    return [*given, "--rollout-max-response-len", "8", "--lr", "5e-3", *extra]
