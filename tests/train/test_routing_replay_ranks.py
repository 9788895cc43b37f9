"""Ranks that share a mixture of experts, its rows or its experts, replay routes in a tree of samples as one does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.train import mesh
from miles_lite.train.data import Replicated, Strategy
from miles_lite.train.learner import Learner
from tests.train.families import make_model
from tests.train.helpers import make_batch, make_config
from tests.train.meshes import CPU, RECOMPUTED, SHARDED, Case, Result, assert_equal, tensor, whole
from tests.train.ranks import running
from tests.train.test_routing_replay import WEIGHTS, routed_samples

SPLIT = [[0, 1, 3], [2, 4]]
"""Of the samples among two data-parallel ranks; what is shared is shared within a rank."""

TWO = [
    Case("tensor", tensor(2), RECOMPUTED),
    Case("context", Parallelism(context_parallel_size=2), RECOMPUTED),
    Case("sharded", SHARDED),
    Case("experts", Parallelism(expert_model_parallel_size=2)),
]
FOUR = [Case("tensor x context", tensor(2, context_parallel_size=2), RECOMPUTED)]


def trained(strategy: Strategy, folder: Path, mine: Sequence[int]) -> Result:
    """Metrics and whole gradients of a step on some of the samples."""
    config = make_config(folder, "--clip-grad", "0", "--use-rollout-routing-replay")
    policy, samples = strategy.load(folder), routed_samples()
    learner = Learner(policy, strategy, CPU, config.algorithm, config.optimizer)
    metrics = learner.train(make_batch([samples[i] for i in mine], [WEIGHTS[i] for i in mine], rollouts=[5]))
    named = ((name, parameter.grad) for name, parameter in policy.named_parameters())
    return metrics, {name: whole(gradient) for name, gradient in named if gradient is not None}


def run_rank(rank: int, ranks: int, port: int, cases: Sequence[Case], folder: Path) -> None:
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    mesh.join(store, rank=rank, ranks=ranks, device=CPU, host="127.0.0.1", timeout=60)
    for number, case in enumerate(cases):
        mine = range(5) if case.per_batch == ranks else SPLIT[rank]
        result = trained(case.strategy(), folder, mine)
        if rank == 0:
            torch.save(result, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.e2e
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("ranks", "cases"), [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow)])
def test_ranks_replay_as_one(tmp_path: Path, ranks: int, cases: list[Case]) -> None:
    make_model("qwen3_moe").save_pretrained(tmp_path)
    with running(run_rank, cases, tmp_path, ranks=ranks):
        metrics, gradients = trained(Replicated(Compute()), tmp_path, range(5))
    for number, case in enumerate(cases):
        result = torch.load(tmp_path / f"{number}.pt")
        known = metrics if case.per_batch == ranks else {"train/loss": metrics["train/loss"]}
        assert_equal(result, (known, gradients), case)
