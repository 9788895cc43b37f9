"""What a training step costs beside the work, and how far trainer and engine agree.

    python benchmarks/train_loop.py [--json FILE] [--rollouts 4] [--seed 0]

Prepares the quickstart's tasks and model, then runs `miles-lite train` on them for a few steps, at temperature 1.0 and
at 0.7. Printed, with what each number is to be compared with in the same run:

logprob_gap_t1, logprob_gap_t07     max |trainer - engine| over all trained tokens, fp32         (asked: <= 1e-4)
logprob_gap_floor                   the same between one sequence alone and in a batch: rounding alone
weight_update_seconds               median over the steps, pause included                        (asked: <= 0.5)
weight_update_floor_seconds         writing and reading the same safetensors file, nothing else
overhead_share                      share of step time with no request, agent, tool or training  (asked: <= 0.1)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        numbers = measure(Path(folder), rollouts=args.rollouts, seed=args.seed)
    for name, value in numbers.items():
        print(f"{name:30s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def measure(folder: Path, *, rollouts: int, seed: int) -> dict[str, float]:
    """All numbers, by running the job itself through its launcher."""
    hot = run(folder / "t1", rollouts=rollouts, seed=seed, temperature=1.0)
    cool = run(folder / "t07", rollouts=rollouts, seed=seed, temperature=0.7)
    model = folder / "t1" / "model"
    return {
        "logprob_gap_t1": hot["logprob_gap_max"],
        "logprob_gap_t07": cool["logprob_gap_max"],
        "logprob_gap_floor": rounding_floor(model),
        "weight_update_seconds": hot["weight_update_seconds"],
        "weight_update_floor_seconds": file_floor(model, folder / "floor.safetensors"),
        "overhead_share": hot["overhead_share"],
    }


def run(run_dir: Path, *, rollouts: int, seed: int, temperature: float) -> dict[str, float]:
    """One short job; returns its summary.json."""
    command = [str(ROOT / "launchers" / "quickstart.sh")]
    command += ["--num-rollout", str(rollouts), "--rollout-temperature", str(temperature)]
    environment = {"RUN_DIR": str(run_dir), "SEED": str(seed)}
    subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), *command], check=True, timeout=LIMIT
    )
    summary: dict[str, float] = json.loads((run_dir / "summary.json").read_text())
    return summary


def rounding_floor(model: Path) -> float:
    """max |logprob| difference of one random sequence computed alone and as one row of a batch of 8, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.randint(10, network.config.vocab_size, (8, 256))
    with torch.no_grad():
        batch = network(ids).logits[0].log_softmax(-1)
        alone = network(ids[:1]).logits[0].log_softmax(-1)
    taken = ids[0, 1:, None]
    return float((batch[:-1].gather(-1, taken) - alone[:-1].gather(-1, taken)).abs().max())


def file_floor(model: Path, file: Path) -> float:
    """Median seconds to write and read the model's weights as one safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = {name: value for part in model.glob("*.safetensors") for name, value in load_file(part).items()}

    def once() -> float:
        began = time.perf_counter()
        save_file(tensors, file)
        load_file(file)
        return time.perf_counter() - began

    return statistics.median(once() for _ in range(5))


if __name__ == "__main__":
    sys.exit(main())
