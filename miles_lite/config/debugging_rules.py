"""What the options of debugging cannot be together."""

from __future__ import annotations

from miles_lite.config.debugging import Debugging
from miles_lite.config.places import Topology
from miles_lite.config.rules import Rules
from miles_lite.config.training import Algorithm

NUMBERED = "{rollout_id}"


def halves(debugging: Debugging, algorithm: Algorithm) -> Rules:
    """One half of the loop at most is left out, and the other has what it needs."""
    rolls, trains = debugging.debug_rollout_only, debugging.trains_alone
    saved, loaded = debugging.save_debug_rollout_data, debugging.load_debug_rollout_data
    return [
        (
            rolls and trains,
            "--debug-rollout-only leaves trainers out, --debug-train-only and --load-debug-rollout-data engines: "
            "take one half",
        ),
        (
            trains and loaded is None and not algorithm.imitates,
            "--debug-train-only needs --load-debug-rollout-data: the rollouts that --save-debug-rollout-data wrote",
        ),
        (
            trains and saved is not None,
            "--save-debug-rollout-data has nothing to save where rollouts are loaded: leave it out",
        ),
        (
            algorithm.imitates and (rolls or loaded is not None or saved is not None),
            "--loss-type sft_loss has no rollouts: leave out --debug-rollout-only, --save-debug-rollout-data and "
            "--load-debug-rollout-data",
        ),
        *(
            (path is not None and NUMBERED not in path, f"{flag} {path}: must hold {NUMBERED}, one file per step")
            for flag, path in (("--save-debug-rollout-data", saved), ("--load-debug-rollout-data", loaded))
        ),
    ]


def recording(debugging: Debugging, topology: Topology, *, steps: int | None) -> Rules:
    """Steps, ranks and memory that exist. `steps` of the run, None where the prompts decide."""
    start, end, ranks = debugging.profile_step_start, debugging.profile_step_end, debugging.profile_ranks
    records = debugging.recording
    return [
        (
            records and debugging.debug_rollout_only,
            "--debug-rollout-only trains nothing that --use-pytorch-profiler or --record-memory-history could record",
        ),
        (start >= end, f"--profile-step-start {start} must be below --profile-step-end {end}"),
        (
            records and steps is not None and start >= steps,
            f"--profile-step-start {start}: there is no such step, --num-rollout is {steps} and the first is 0",
        ),
        (
            max(ranks, default=0) >= topology.world_size,
            f"--profile-ranks {max(ranks, default=0)}: there are {topology.world_size} train ranks, from 0 on",
        ),
    ]
