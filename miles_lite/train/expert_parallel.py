"""Expert parallelism: whole experts shared out over ranks, tokens sent to those that hold theirs and back.

Invariant: an expert's gradient is of the tokens of all ranks that sent it some, so it is summed over the ranks that
hold the same expert and no others (`Mesh.expert`). Ranks with the same tokens (tensor parallel) each send a part.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from miles_lite.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISPATCHED = "ep_dispatch_experts"


def share_out(model: PreTrainedModel, experts: DeviceMesh, tensor: DeviceMesh) -> list[nn.Module]:
    """Make the experts of a model, on the meta device or alike on all ranks, shards of the mesh `experts`; the modules
    that hold them. `tensor` is the mesh of ranks that have the same tokens. To be done before anything else is cut.

    Raises UserError for a model whose experts transformers cannot share out.
    """
    from transformers.distributed.tensor_parallel import apply_expert_parallelism

    plan = expert_plan(model, ranks=experts.size())
    apply_expert_parallelism(model, experts, tensor, plan)
    holders = re.compile("|".join(_pattern(name) for name, style in plan.items() if style == DISPATCHED))
    return [module for name, module in model.named_modules() if holders.fullmatch(name)]


def expert_plan(model: PreTrainedModel, *, ranks: int) -> dict[str, str]:
    """How its experts are shared out over so many. Raises UserError where they cannot be."""
    plan = dict(model.ep_plan)
    if DISPATCHED not in plan.values():
        raise UserError(
            f"--expert-model-parallel-size {ranks}: transformers has no plan to share out the experts of "
            f"{type(model).__name__}. Leave it out: experts are cut over tensor ranks and sharded over the others"
        )
    return plan


def without_experts(plan: dict[str, str], model: PreTrainedModel) -> dict[str, str]:
    """A tensor-parallel plan without what `share_out` has shared out."""
    taken = re.compile(rf"(?:{'|'.join(map(re.escape, model.ep_plan))})(?:\..+)?")
    return {name: style for name, style in plan.items() if not taken.fullmatch(name)}


def _pattern(name: str) -> str:
    """Of modules that a plan names."""
    return re.escape(name).replace(r"\*", r"\d+")
