"""Two ranks give the gradients of one, replicated and sharded (FSDP2, on gloo)."""

from __future__ import annotations

import contextlib
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from miles_lite.train import checkpoint, parallel
from miles_lite.train.batching import Batch
from miles_lite.train.learner import Learner
from miles_lite.train.policy import Policy, load_model
from miles_lite.weights.gather import Published
from tests.train.helpers import make_batch, make_config, make_samples

FLAGS = ("--adam-eps", "1.0", "--lr", "0.1", "--use-kl-loss", "--kl-loss-coef", "0.1")
ADVANTAGES = [1.0, -1.0, 0.5, 0.25, -0.75]
STRATEGIES = (parallel.Replicated, parallel.Sharded)
Result = tuple[dict[str, float], dict[str, torch.Tensor]]


def batches(ranks: int) -> list[Batch]:
    """The same five samples in two steps, shared out; of two ranks the second has nothing in the second step."""
    samples = make_samples(9, 5)
    shares = {1: [[[0, 1], [2, 3, 4]]], 2: [[[0], [4, 2, 3]], [[1], []]]}[ranks]
    result = []
    for steps in shares:
        mine = [index for step in steps for index in step]
        plan = [[[mine.index(index) for index in step]] for step in steps]
        result.append(
            make_batch([samples[i] for i in mine], [ADVANTAGES[i] for i in mine], steps=plan, rollouts=[2, 3])
        )
    return result


def train_and_resume(batch: Batch, strategy: type, model: Path, folder: Path) -> Result:
    """Metrics of training on a batch, and the weights that a checkpoint of it brings back."""
    config = make_config(model, *FLAGS)
    cpu = torch.device("cpu")

    def learner() -> Learner:
        reference = Policy(load_model(model)).requires_grad_(False)
        chosen = parallel.Sharded(cpu) if strategy is parallel.Sharded else parallel.Replicated()
        return Learner(Policy(load_model(model)), chosen, cpu, config.algorithm, config.optimizer, reference)

    trained = learner()
    metrics = trained.train(batch)
    checkpoint.save(trained, folder, iteration=0)
    resumed = learner()
    assert checkpoint.load(resumed, folder) == 0
    weights = Published(resumed.policy.model, resumed.policy.weights(), torch.float32)
    if dist.get_rank() > 0:
        weights.follow()
        return metrics, {}
    with contextlib.closing(weights):
        return metrics, dict(zip(weights.layout, weights.fetch(list(weights.layout)), strict=True))


def run_rank(rank: int, port: int, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    store = parallel.reach_store("127.0.0.1", port, ranks=2, timeout=60)
    parallel.join(store, rank=rank, ranks=2, device=torch.device("cpu"), host="127.0.0.1", timeout=60)
    for strategy in STRATEGIES:
        result = train_and_resume(batches(2)[rank], strategy, model, out / strategy.__name__)
        if rank == 0:
            torch.save(result, out / f"{strategy.__name__}.pt")
    dist.destroy_process_group()


@pytest.mark.e2e
@pytest.mark.usefixtures("process_group")
def test_two_ranks_replicated_or_sharded_train_as_one(model_dir: Path, tmp_path: Path) -> None:
    metrics, weights = train_and_resume(batches(1)[0], parallel.Replicated, model_dir, tmp_path / "one")
    store = parallel.open_store("127.0.0.1", ranks=2, timeout=60)
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=run_rank, args=(rank, store.port, model_dir, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for strategy in STRATEGIES:
        other_metrics, other_weights = torch.load(tmp_path / f"{strategy.__name__}.pt")
        assert set(other_weights) == set(weights)
        for name, tensor in other_weights.items():
            torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=1e-4, msg=f"{strategy} {name}")
        for name in (name for name in metrics if name.startswith("train/")):
            assert other_metrics[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), (strategy, name)
