"""What a training step costs beside the work, and how far trainer and engine agree.

    python benchmarks/train_loop.py [--json FILE] [--rollouts 4] [--seed 0]

Prepares the quickstart's tasks and model, then runs `miles-lite train` on them for a few steps, at temperature 1.0 and
at 0.7. Printed, with what each number is to be compared with in the same run:

logprob_gap_t1, logprob_gap_t07     max |trainer - engine| over all trained tokens, fp32         (asked: <= 1e-4)
logprob_gap_floor                   max |float32 - float64| of the trainer alone: rounding
weight_update_seconds               median over the steps, pause included                        (asked: <= 0.5)
weight_update_floor_seconds         writing and reading the same safetensors file, nothing else
overhead_share                      share of step time with no request, agent, tool or training  (asked: <= 0.1)
cpu_ms_per_episode                  CPU time of all processes of the job per episode, and which of them it went to
wall_ms_per_episode                 wall time of the same steps per episode
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900
EPISODES = 128
"""Of one rollout of the quickstart."""

MARK = "MILES_LITE_BENCHMARK"
KINDS = {
    "agents": ("ray::AgentWorker",),
    "engine": ("sglang",),
    "session": ("ray::SessionActor",),
    "router": ("ray::RouterActor",),
    "training": ("ray::TrainWorker",),
    "manager": ("ray::RolloutManager", "miles-lite train"),
}
"""Process kinds by words of their command lines; agents include the commands and tests they ran, all else is Ray."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.rollouts < 3:
        parser.error(f"--rollouts {args.rollouts}: at least 3: the first and the last are not measured")
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        numbers = measure(Path(folder), rollouts=args.rollouts, seed=args.seed)
    for name, value in numbers.items():
        print(f"{name:30s} {value:.3g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def measure(folder: Path, *, rollouts: int, seed: int) -> dict[str, float]:
    """All numbers, by running the job itself through its launcher."""
    hot, budget = run(folder / "t1", rollouts=rollouts, seed=seed, temperature=1.0)
    cool, _ = run(folder / "t07", rollouts=rollouts, seed=seed, temperature=0.7)
    model = folder / "t1" / "data" / "model"
    return {
        "logprob_gap_t1": hot["logprob_gap_max"],
        "logprob_gap_t07": cool["logprob_gap_max"],
        "logprob_gap_floor": rounding_floor(model),
        "weight_update_seconds": hot["weight_update_seconds"],
        "weight_update_floor_seconds": file_floor(model, folder / "floor.safetensors"),
        "overhead_share": hot["overhead_share"],
        **budget,
    }


def run(run_dir: Path, *, rollouts: int, seed: int, temperature: float) -> tuple[dict[str, float], dict[str, float]]:
    """One short job: its summary.json, and the CPU budget of an episode over all steps but the first."""
    mark = uuid.uuid4().hex
    command = [str(ROOT / "launchers" / "quickstart.sh")]
    command += ["--num-rollout", str(rollouts), "--rollout-temperature", str(temperature), "--skip-eval-before-train"]
    command += ["--eval-interval", "1000000"]
    environment = os.environ | {"RUN_DIR": str(run_dir), "SEED": str(seed), MARK: mark}
    job = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        budget = watch(job, run_dir, mark, rollouts=rollouts)
        if job.wait(timeout=60) != 0:
            raise SystemExit(f"the job failed with exit code {job.returncode}; see {run_dir}")
    finally:
        job.terminate()
        job.wait(timeout=60)
    return json.loads((run_dir / "summary.json").read_text()), budget


def watch(job: subprocess.Popen[bytes], run_dir: Path, mark: str, *, rollouts: int) -> dict[str, float]:
    """CPU milliseconds per episode and process kind, from the end of the first step to the end of the last but one."""
    deadline = time.monotonic() + LIMIT
    marks: dict[int, tuple[float, dict[str, float]]] = {}
    while job.poll() is None and time.monotonic() < deadline and len(marks) < 2:
        done = steps_done(run_dir)
        if (not marks and done >= 1) or (marks and done >= rollouts - 1):
            marks[done] = (time.monotonic(), cpu_seconds(mark))
        time.sleep(0.05)
    job.wait(timeout=max(1.0, deadline - time.monotonic()))
    if len(marks) < 2:
        return {}
    (first, (began, before)), (last, (ended, after)) = marks.items()
    episodes = (last - first) * EPISODES
    spent = {kind: 1000 * (after[kind] - before[kind]) / episodes for kind in after}
    return {
        "cpu_ms_per_episode": sum(spent.values()),
        **{f"cpu_ms_{kind}": value for kind, value in sorted(spent.items())},
        "wall_ms_per_episode": 1000 * (ended - began) / episodes,
    }


def steps_done(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_text().count('"perf/step_time"') if file.exists() else 0


def cpu_seconds(mark: str) -> dict[str, float]:
    """CPU seconds so far of the job's processes and what they waited for, by kind."""
    spent: dict[str, float] = defaultdict(float)
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != mark:
                continue
            text = " ".join(process.cmdline())
            kind = next((kind for kind, words in KINDS.items() if any(word in text for word in words)), "ray")
            times = process.cpu_times()
            spent[kind] += times.user + times.system
            if kind == "agents":
                spent[kind] += times.children_user + times.children_system
        except psutil.Error:
            continue
    return spent


def rounding_floor(model: Path) -> float:
    """max |logprob| difference between float32 and float64 on a random sequence of 256 tokens."""
    import torch

    from miles_lite.train.loading import load_model

    torch.manual_seed(0)
    network = load_model(model).eval()
    ids = torch.randint(10, network.config.vocab_size, (1, 256))
    with torch.no_grad():
        single = network(ids).logits[0].log_softmax(-1)
        double = network.double()(ids).logits[0].log_softmax(-1)
    taken = ids[0, 1:, None]
    return float((single[:-1].gather(-1, taken) - double[:-1].gather(-1, taken)).abs().max())


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
    main()
