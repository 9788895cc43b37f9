"""Checkpoints of any mesh go on on any other; killed and resumed is as never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from miles_lite.config.model import Checkpoint
from miles_lite.train import checkpoint, mesh
from miles_lite.train.learner import Learner
from tests.train.families import make_model
from tests.train.helpers import make_config
from tests.train.meshes import CPU, SHARDED, Case, context, expert, share, tensor, whole
from tests.train.ranks import run

FLAGS = ("--lr", "1e-2", "--adam-eps", "1e-3")
Result = tuple[list[dict[str, str]], dict[str, Tensor]]
KINDS = ("qwen3_tied", "qwen3_moe")


@dataclass(frozen=True)
class Leg:
    """Steps of a run in processes of its own: what it loads, what it saves, how many steps it makes."""

    case: Case
    load: str | None
    save: str | None
    steps: int


def run_leg(leg: Leg, folder: Path) -> Result:
    """Metrics by step, and the whole weights at the end."""
    ranks = dist.get_world_size() // leg.case.per_batch
    config = make_config(folder / leg.case.kind, *FLAGS)
    strategy = leg.case.strategy()
    learner = Learner(strategy.load(folder / leg.case.kind), strategy, CPU, config.algorithm, config.optimizer)
    saver = checkpoint.Saver(Checkpoint())
    if leg.load is not None:
        assert checkpoint.load(learner, folder / leg.load) == 0
    batch = share(dist.get_rank() // leg.case.per_batch, ranks)
    metrics = []
    if leg.save is not None:
        metrics.append(learner.train(batch))
        saver.begin(learner, folder / leg.save, iteration=0)
    metrics.extend(learner.train(batch) for _ in range(leg.steps))  # while the checkpoint is being written
    saver.finish()
    weights = {name: whole(parameter) for name, parameter in learner.policy.named_parameters()}
    return [_told(each) for each in metrics], weights


def _told(metrics: dict[str, float]) -> dict[str, str]:
    return {name: value.hex() for name, value in metrics.items() if name.startswith("train/")}


def run_rank(rank: int, ranks: int, port: int, legs: Sequence[Leg], folder: Path, out: str) -> None:
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    mesh.join(store, rank=rank, ranks=ranks, device=CPU, host="127.0.0.1", timeout=60)
    results = [run_leg(leg, folder) for leg in legs]
    if rank == 0:
        torch.save(results, folder / out)
    dist.destroy_process_group()


def spread(legs: Sequence[Leg], folder: Path, *, ranks: int, out: str) -> list[Result]:
    run(run_rank, legs, folder, out, ranks=ranks)
    found: list[Result] = torch.load(folder / out)
    return found


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], *, at_most: float) -> None:
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        assert float((weight - expected[name]).norm()) <= at_most * float(expected[name].norm()), name


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
def test_what_one_mesh_saves_another_goes_on_with(tmp_path: Path) -> None:
    for kind in KINDS:
        make_model(kind).save_pretrained(tmp_path / kind)
    kinds = [(kind, sizes) for kind in KINDS for sizes in (tensor(2), SHARDED, context(2))]
    kinds.append(("qwen3_moe", expert(2)))
    first = [Leg(Case(kind, sizes), load=None, save=f"{at}", steps=1) for at, (kind, sizes) in enumerate(kinds)]
    straight = spread(first, tmp_path, ranks=2, out="first.pt")
    again = [Leg(leg.case, load=leg.save, save=None, steps=1) for leg in first]
    swapped = [
        Leg(Case(leg.case.kind, SHARDED if leg.case.sizes != SHARDED else tensor(2)), leg.save, None, 1)
        for leg in first
    ]
    resumed = spread([*again, *swapped], tmp_path, ranks=2, out="second.pt")
    for number, (leg, known) in enumerate(zip(first, straight, strict=True)):
        metrics, weights = resumed[number]
        assert metrics == known[0][1:], leg
        assert all(torch.equal(weights[name], each) for name, each in known[1].items()), leg
        assert_close(resumed[number + len(first)][1], known[1], at_most=1e-6)
        alone = run_leg(Leg(Case(leg.case.kind), leg.save, None, 1), tmp_path)
        assert_close(alone[1], known[1], at_most=1e-6)
