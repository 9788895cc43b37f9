"""Tensor parallelism: the matrices of every layer cut over ranks by the model's own plan, and the vocabulary with them.

Invariant: gradients are those of one process however many backward passes a step has. Two things of the plan are done
otherwise for it. Norms that each rank applies to its own heads have partial gradients: they are summed once per step
(`Tensors.finish`), where the plan sums what has accumulated at every backward pass. And embedding and head are cut by
vocabulary, both alike, so that tied ones stay one parameter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from miles_lite.errors import UserError
from miles_lite.train import adapters
from miles_lite.train.expert_parallel import without_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTIAL = "replicated_with_grad_allreduce"

ADAPTED = {"colwise": "lora_B", "colwise_gather_output": "lora_B", "colwise_rep": "lora_B", "rowwise": "lora_A"}
"""By the style of a layer, the adapter's matrix that is cut as it is; all ranks have the other one. What B takes, and
what A gives, is as wide as the adapter's rank, and summed over ranks: B's in the backward pass, A's in the forward."""


@dataclass(frozen=True)
class Tensors:
    """A model cut over `mesh`; `partial` names the modules whose parameters each rank has part of the gradient of."""

    mesh: DeviceMesh
    partial: frozenset[str]

    def finish(self, model: nn.Module) -> None:
        """Make the gradients of the model whole, once per step. Collective."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and _generic(name.rpartition(".")[0]) in self.partial:
                gradient = parameter.grad
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                dist.all_reduce(local, group=self.mesh.get_group())


def cut(model: PreTrainedModel, mesh: DeviceMesh, *, experts: bool = True) -> Tensors:
    """Make the parameters of a model, on the meta device or alike on all ranks, shards of a one-dimensional mesh;
    without `experts`, which are shared out otherwise.

    Raises UserError for a model without a plan.
    """
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    plan, partial = tensor_plan(model, ranks=mesh.size(), experts=experts)
    tied = head.weight is embedding.weight
    apply_tensor_parallelism(model, mesh, plan)  # type: ignore[no-untyped-call]
    if tied:
        head.weight = embedding.weight
    return Tensors(mesh, partial)


def tensor_plan(model: PreTrainedModel, *, ranks: int, experts: bool) -> tuple[dict[str, str], frozenset[str]]:
    """How its layers, adapters among them, are cut over so many ranks, and whose gradients are partial (see `Tensors`).
    Raises UserError where they cannot be."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    plan = dict(model.tp_plan) if experts else without_experts(model.tp_plan, model)
    names = {module: name for name, module in model.named_modules()}
    if not plan.keys() - {names[head]}:
        raise UserError(
            f"--tensor-model-parallel-size {ranks}: transformers has no tensor-parallel plan for "
            f"{type(model).__name__}. Leave it out: layers are sharded over data-parallel ranks"
        )
    partial = frozenset(name for name, style in plan.items() if style == PARTIAL)
    plan = {name: style for name, style in plan.items() if name not in partial}
    plan |= {names[embedding]: "embedding_rowwise", names[head]: "colwise_gather_output"}
    return beside(plan, {_generic(name) for name in adapters.layers(model)}), partial


def beside(plan: dict[str, str], adapted: Collection[str]) -> dict[str, str]:
    """A plan for a model in which layers of these generic names have adapters. Raises UserError for a style that knows
    none."""
    told: dict[str, str] = {}
    for name, style in plan.items():
        if name not in adapted:
            told[name] = style
            continue
        if style not in ADAPTED:
            raise UserError(
                f"--lora-rank: {name} is cut over tensor ranks as {style}, which has no adapters: leave it "
                "out of --target-modules, or take --tensor-model-parallel-size 1"
            )
        told |= {name + adapters.BASE: style, f"{name}.{ADAPTED[style]}.{adapters.NAME}": style}
    return told


def _generic(name: str) -> str:
    """With layers' numbers as a plan has them."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
