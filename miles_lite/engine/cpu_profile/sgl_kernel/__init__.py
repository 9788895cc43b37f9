"""Stands in for SGLang's kernel package, which has no CPU build on PyPI; used by CPU servers only.

Names can be imported and raise when they are called. No `torch.ops.sgl_kernel` operator is registered, so SGLang finds
no AMX support and takes its pure PyTorch paths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch import Tensor

__version__ = "0.0.0+cpu.profile"


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor, req_to_token: Tensor, start: Tensor, end: Tensor, out_cache_loc: Tensor, pool_len: int
) -> None:
    """Write each request's new cache slots into its row: req_to_token[row, start:end] = its part of out_cache_loc.

    Shapes: req_pool_indices, start, end int [B]; req_to_token int32 [rows, pool_len]; out_cache_loc int
    [sum(end - start)].
    """
    taken = 0
    for row, first, last in zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=True):
        req_to_token[row, first:last] = out_cache_loc[taken : taken + last - first]
        taken += last - first


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args: object, **_options: object) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name} has no CPU version here: SGLang took a path that needs its compiled kernels. "
            "Change the --sglang-* flag that selects it, or run on a GPU."
        )

    return missing
