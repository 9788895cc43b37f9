"""However ranks share a model, loss and gradients are those of one process that takes sequence by sequence.

They take rows with shared prefixes and replayed routes, in two micro-batches, some recomputing their layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from miles_lite.config.lora import LoRA
from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.train import adapters, mesh
from miles_lite.train.learner import Learner
from miles_lite.train.policy import Policy
from tests.train.families import FAMILIES, make_model
from tests.train.helpers import make_config
from tests.train.meshes import (
    CPU,
    RECOMPUTED,
    SHARDED,
    Case,
    Result,
    assert_equal,
    context,
    expert,
    share,
    tensor,
    whole,
)
from tests.train.ranks import run

FLAGS = ("--use-kl-loss", "--kl-loss-coef", "0.1", "--clip-grad", "0", "--entropy-coef", "0.01")


PLAIN = Compute(attn_implementation="sdpa")
"""One padded sequence per row."""

LORA = LoRA(lora_rank=4)


def trained(case: Case, folder: Path) -> Result:
    """Metrics and whole gradients of one step; of adapters also the weights that engines get before it."""
    ranks = dist.get_world_size() // case.per_batch
    replayed = ("--use-rollout-routing-replay",) if "moe" in case.kind else ()
    config = make_config(folder / case.kind, *FLAGS, *replayed)
    strategy = case.strategy()
    policy = strategy.load(folder / case.kind, lora=case.lora)
    served: dict[str, Tensor] = {}
    if case.lora is None:
        reference = strategy.load(folder / case.kind).requires_grad_(False)
    else:
        reference = adapters.WithoutAdapters(policy)
        change(policy)
        served = {f"served {name}": whole(each) for name, each in merged(policy).items()}
    learner = Learner(policy, strategy, CPU, config.algorithm, config.optimizer, reference)
    metrics = learner.train(share(dist.get_rank() // case.per_batch, ranks))
    named = ((name, parameter.grad) for name, parameter in policy.named_parameters())
    return metrics, served | {name: whole(gradient) for name, gradient in named if gradient is not None}


def merged(policy: Policy) -> dict[str, Tensor]:
    return adapters.merged(policy.model, policy.weights())


@torch.no_grad()
def change(policy: Policy) -> None:
    """As if its adapters had been trained."""
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.01)


def run_rank(rank: int, ranks: int, port: int, cases: Sequence[Case], folder: Path) -> None:
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    mesh.join(store, rank=rank, ranks=ranks, device=CPU, host="127.0.0.1", timeout=60)
    for number, case in enumerate(cases):
        result = trained(case, folder)
        if rank == 0:
            torch.save(result, folder / f"{ranks}-{number}.pt")
    dist.destroy_process_group()


def spread(cases: Sequence[Case], folder: Path, *, ranks: int) -> list[Result]:
    """What rank 0 has of each case."""
    run(run_rank, cases, folder, ranks=ranks)
    return [torch.load(folder / f"{ranks}-{number}.pt") for number in range(len(cases))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in FAMILIES:
        make_model(kind).save_pretrained(folder / kind)
    return folder


TWO = [
    Case("qwen3"),
    Case("qwen3_tied", SHARDED),
    Case("qwen3_moe", SHARDED, RECOMPUTED),
    *(Case(kind, tensor(2)) for kind in FAMILIES),
    *(Case(kind, context(2)) for kind in FAMILIES),
    Case("qwen3_moe", tensor(2), RECOMPUTED),
    Case("qwen3_moe", expert(2)),
    Case("qwen3_moe", expert(2), RECOMPUTED),
    Case("qwen3_moe", expert(2, tensor_model_parallel_size=2)),
    Case("qwen3_moe", expert(2, context_parallel_size=2)),
    Case("qwen3_tied", Parallelism(data_parallel_replicate_size=2)),
    Case("qwen3_tied", SHARDED, lora=LORA),
    Case("qwen3", context(2), RECOMPUTED, lora=LORA),
    Case("qwen3_tied", tensor(2), lora=LORA),
    Case("gemma3", tensor(2), RECOMPUTED, lora=LORA),
    Case("qwen3_moe", expert(2, tensor_model_parallel_size=2), lora=LORA),
]
FOUR = [
    *(Case(kind, sizes) for kind in FAMILIES for sizes in (tensor(2), tensor(2, context_parallel_size=2))),
    *(Case(kind, context(2)) for kind in FAMILIES),
    Case("qwen3_moe", context(4), RECOMPUTED),
    Case("qwen3_moe", expert(2)),
    Case("qwen3_moe", expert(4)),
    Case("qwen3_moe", expert(4, tensor_model_parallel_size=2)),
    Case("qwen3_moe", expert(2, context_parallel_size=2)),
    Case("qwen3_moe", expert(4, tensor_model_parallel_size=2, context_parallel_size=2), RECOMPUTED),
    Case("qwen3_moe", tensor(2, context_parallel_size=2), RECOMPUTED),
    Case("qwen3", tensor(2, data_parallel_replicate_size=2)),
    Case("qwen3_moe", tensor(2), RECOMPUTED, lora=LORA),
    Case("qwen3_moe", expert(4, tensor_model_parallel_size=2), lora=LORA),
]


@pytest.mark.e2e
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("ranks", "cases"), [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow)])
def test_ranks_that_share_a_model_train_as_one(models: Path, ranks: int, cases: list[Case]) -> None:
    kinds = {(case.kind, case.lora) for case in cases}
    alone = {(kind, lora): trained(Case(kind, compute=PLAIN, lora=lora), models) for kind, lora in kinds}
    for case, result in zip(cases, spread(cases, models, ranks=ranks), strict=True):
        assert_equal(result, alone[case.kind, case.lora], case)
