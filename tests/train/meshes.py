"""What tests of meshes share: cases, what their ranks train, and when two results are one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from miles_lite.config.lora import LoRA
from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.sample import Sample
from miles_lite.train import mesh
from miles_lite.train.batching import Batch
from miles_lite.train.data import Replicated, Sharded, Strategy
from tests.train.families import SIZE
from tests.train.helpers import make_batch, make_samples

CPU = torch.device("cpu")
ADVANTAGES = [1.0, -1.0, 0.5, 0.25, -0.75]
SHARED_TOKENS = 7
LAYERS = int(SIZE["num_hidden_layers"])
Result = tuple[dict[str, float], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """A model kind on a mesh; no mesh is `Replicated`."""

    kind: str
    sizes: Parallelism | None = None
    compute: Compute = field(default_factory=Compute)
    lora: LoRA | None = None

    def strategy(self) -> Strategy:
        if self.sizes is None:
            return Replicated(self.compute)
        return Sharded(mesh.make_mesh(self.sizes, device=CPU), CPU, self.compute)

    @property
    def per_batch(self) -> int:
        return 1 if self.sizes is None else self.sizes.ranks_per_batch


def tensor(size: int, **more: int) -> Parallelism:
    return Parallelism(tensor_model_parallel_size=size, **more)  # type: ignore[arg-type]


def context(size: int, **more: int) -> Parallelism:
    return Parallelism(context_parallel_size=size, **more)  # type: ignore[arg-type]


def expert(size: int, **more: int) -> Parallelism:
    return Parallelism(expert_model_parallel_size=size, **more)  # type: ignore[arg-type]


SHARDED = Parallelism(data_parallel_sharding_strategy="optim_grads_params")


RECOMPUTED = Compute(gradient_checkpointing=True)


def routed_siblings() -> list[Sample]:
    """Five samples that share a prefix, routed alike where they stand at the same place."""
    samples = make_samples(9, 5)
    rows = np.argsort(np.random.default_rng(1).random((400, LAYERS, 8)), -1)[:, :, :2].astype(np.uint8)
    for sample in samples:
        sample.tokens[:SHARED_TOKENS] = samples[0].tokens[:SHARED_TOKENS]
        sample.routed_experts = rows[: len(sample) - 1]
    return samples


def share(index: int, count: int) -> Batch:
    """What the data-parallel rank `index` of `count` trains: its part of a step of two micro-batches."""
    samples = routed_siblings()
    plan = {1: [[[0, 1], [2, 3, 4]]], 2: [[[0], [4, 2]], [[1], [3]]], 4: [[[0], [4]], [[1], []], [[2], []], [[3], []]]}
    micro_batches = plan[count][index]
    mine = [number for micro_batch in micro_batches for number in micro_batch]
    steps = [[[mine.index(number) for number in micro_batch] for micro_batch in micro_batches]]
    return make_batch([samples[i] for i in mine], [ADVANTAGES[i] for i in mine], steps=steps, rollouts=[5])


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def assert_equal(result: Result, expected: Result, case: Case) -> None:
    """Metrics and every gradient to 1e-5, relative; of routes, those of tokens that samples share count once."""
    (metrics, gradients), (known, alone) = result, expected
    for name in (name for name in known if name.startswith("train/") and "routes" not in name):
        assert metrics[name] == pytest.approx(known[name], rel=1e-5, abs=1e-6), (case, name)
    assert gradients.keys() == alone.keys(), case
    floor = 1e-6 * max(float(gradient.norm()) for gradient in alone.values())
    for name, gradient in gradients.items():
        error = float((gradient - alone[name]).norm()) / max(float(alone[name].norm()), floor)
        assert error <= 1e-5, (case, name, error)
