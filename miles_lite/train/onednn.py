"""Matrix products of linear layers through oneDNN on CPU.

PyTorch gives float32 products to MKL, which on CPUs of other makers than its own leaves more than half of the
arithmetic unused; oneDNN, which CPU builds of PyTorch carry too, does not. Invariant: the same float32 products with
another order of summation; whatever is not a float32 linear layer without bias on CPU is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OneDNNLinear(TorchFunctionMode):
    """While entered, this thread's `functional.linear` calls run in oneDNN."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and suits(*args, **(kwargs or {})):
            return _Linear.apply(args[0], args[1])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    return plain and bias is None and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: float32 [..., in], [out, in] to [..., out]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradients[0].flatten(0, -2)
        for_x = product(gradients[0], weight.t()) if ctx.needs_input_grad[0] else None
        for_weight = product(x.flatten(0, -2).t(), rows.t()).t() if ctx.needs_input_grad[1] else None
        return for_x, for_weight
