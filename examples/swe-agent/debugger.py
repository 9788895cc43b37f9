"""A trained model as a debugger: `miles-lite agent` repairs held-out repositories, hidden tests count.

    python debugger.py --model runs/sft/model --data runs/quickstart/data/heldout.jsonl
    python debugger.py --run-dir runs/quickstart        the model that the quickstart trained, beside its own evaluation

Serves the model, then runs the command once per task and sample, each in a fresh copy of the repository. A repair
counts when the agent submitted and the hidden tests pass, as in training.

Invariant: what was started is ended, and the model sees what it saw in training: the same system prompt, the same
results, the same limits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prompts import SUBMIT, SYSTEM
from workspace import Workspace, sandboxed

STEPS = 4
TOKENS = 64
START_SECONDS = 180
EPISODE_SECONDS = 120
TEST_SECONDS = 10
MILES_LITE = (sys.executable, "-m", "miles_lite")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="model folder; needs --data")
    source.add_argument("--run-dir", type=Path, help="run folder of launchers/quickstart.sh")
    parser.add_argument("--data", type=Path, help="JSONL of tasks (default: the run folder's held-out ones)")
    parser.add_argument("--samples", type=int, default=2, help="episodes per task (default: 2, as the quickstart)")
    parser.add_argument("--parallel", type=int, default=8, help="agents at a time (default: 8)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    if given.run_dir is None and given.data is None:
        parser.error("--model needs --data")
    data = given.data or given.run_dir / "data" / "heldout.jsonl"
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="debugger-") as scratch:
        model = given.model or trained_model(given.run_dir, Path(scratch, "model"))
        with serving(model, Path(scratch, "run")) as url, ThreadPoolExecutor(given.parallel) as agents:
            repaired = list(agents.map(lambda row: repairs(url, row), rows * given.samples))
    rate = sum(repaired) / len(repaired)
    numbers = {
        "repaired": rate,
        "standard_error": math.sqrt(rate * (1 - rate) / len(repaired)),
        "episodes": len(repaired),
    }
    if given.run_dir is not None:
        numbers["training_reported"] = reported(given.run_dir)
    print("  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    if given.json:
        given.json.write_text(json.dumps(numbers) + "\n")


def trained_model(run_dir: Path, into: Path) -> Path:
    """The newest weights of a run with the tokenizer of the model that it began with, as one folder."""
    weights = max((run_dir / "weights").glob("v*"), key=lambda folder: folder.stat().st_mtime)
    shutil.copytree(run_dir / "data" / "model", into)
    shutil.copytree(weights, into, dirs_exist_ok=True)
    return into


def reported(run_dir: Path) -> float:
    """The last held-out reward in the run's metrics."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return float([row["eval/heldout"] for row in rows if "eval/heldout" in row][-1])


@contextlib.contextmanager
def serving(model: Path, run_dir: Path) -> Iterator[str]:
    """`miles-lite serve` for a model; the URL of its sessions."""
    flags = ["--hf-checkpoint", str(model), "--rollout-num-gpus", "1", "--tito-allowed-append-roles", "tool", "user"]
    server = subprocess.Popen(
        [*MILES_LITE, "serve", *flags, "--run-dir", str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    impatience = threading.Timer(START_SECONDS, server.terminate)
    impatience.start()
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        url = next((line.split()[1] for line in lines if line.startswith("sessions ")), None)
        ready = url is not None and any(line.startswith("ready") for line in lines)
        impatience.cancel()
        if url is None or not ready:
            sys.exit(f"miles-lite serve did not begin to serve {model} within {START_SECONDS} s")
        yield url
    finally:
        impatience.cancel()
        server.terminate()
        server.wait(60)


def repairs(url: str, row: dict[str, Any]) -> bool:
    """One episode of the agent on a task."""
    with Workspace(row["metadata"]["files"]) as workspace:
        flags = ["--tools", str(Path(__file__).with_name("bash.json")), "--tool-format", "bash", "--system", SYSTEM]
        flags += ["--tool-dir", str(workspace.root), "--sandbox", "bwrap" if sandboxed() else "none"]
        flags += ["--max-steps", str(STEPS), "--max-tokens", str(TOKENS), "--json-out"]
        argv = [*MILES_LITE, "agent", url, *flags, "--single", row["input"]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=EPISODE_SECONDS, check=False)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        if not events:
            sys.exit(f"miles-lite agent failed: {done.stderr}")
        calls = [event for event in events if event["type"] == "tool_call"]
        submitted = events[-1]["type"] == "answer" and calls and calls[-1]["arguments"] == {"command": SUBMIT}
        return bool(submitted) and workspace.passes(row["metadata"]["hidden_tests"], timeout=TEST_SECONDS)


if __name__ == "__main__":
    main()
