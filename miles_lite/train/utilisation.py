"""How much of a training step's work was wanted, and how much of what a device can do it took.

Invariant: what is not known is left out, never estimated: FLOPs of a model whose config does not tell them, and the
peak of a device that is no GPU, or one that the table does not have.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from miles_lite.train.adapters import layers
from miles_lite.train.flops import describes_model, flops, head_flops
from miles_lite.train.packing import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMS = ("tokens", "seen", "distinct", "positions", "flops")

PEAKS: Mapping[str, float] = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
}
"""TFLOP/s of dense bfloat16 matrices, from NVIDIA's data sheets, by what a device's name holds; the first that fits."""


class Meter:
    """Of one model on one rank. `tile`: ranks pad a pass's tokens to its multiple."""

    def __init__(self, model: PreTrainedModel, device: torch.device, *, tile: int) -> None:
        config = model.config.get_text_config().to_dict()
        self._device, self._tile = device, tile
        self._flops = flops(config) if describes_model(config) else None
        self._head = head_flops(config) if describes_model(config) else 0.0
        self._weights = 2 / 3 if layers(model) else 1.0
        """Of 6 FLOPs per weight: those of the weights' own gradients fall away where adapters are trained."""

    def work(self, passes: Iterable[Packed]) -> dict[str, float]:
        """Sums over the passes of an update, by SUMS, but for `tokens`."""
        sums = dict.fromkeys(SUMS[1:], 0.0)
        for packed in passes:
            rows, length = packed.tokens.shape
            sums["seen"] += packed.seen
            sums["distinct"] += packed.distinct
            sums["positions"] += rows * -(-length // self._tile) * self._tile
            sums["flops"] += self._flops_of(packed)
        return sums

    def _flops_of(self, packed: Packed) -> float:
        """Forward and backward; what is computed again to save memory does not count."""
        if self._flops is None:
            return 0.0
        spared = self._head * (packed.distinct - len(packed.targets))
        weights = self._flops.of(packed.distinct, 0) - spared
        return self._weights * weights + self._flops.of(0, packed.pairs)

    def report(self, totals: Mapping[str, float], *, seconds: float, memory: float) -> dict[str, float]:
        """Of what `work` summed, over all ranks: metrics by name. `seconds` of the updates; peak `memory` in bytes."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        rate = totals["tokens"] / max(seconds, 1e-9)
        metrics = {
            "perf/actor_train_tok_per_s": rate,
            "perf/actor_train_tok_per_s_per_rank": rate / ranks,
            "perf/padding_ratio": 1 - totals["distinct"] / max(totals["positions"], 1.0),
            "perf/tree_savings_ratio": 1 - totals["distinct"] / max(totals["seen"], 1.0),
            "perf/peak_memory_gb": memory / 1e9,
        }
        if self._flops is not None:
            metrics["perf/actor_train_tflops"] = reached = totals["flops"] / max(seconds, 1e-9) / ranks / 1e12
            if (peak := peak_tflops(self._device)) is not None:
                metrics |= {"perf/mfu_peak_tflops": peak, "perf/actor_train_mfu": reached / peak}
        return metrics


def peak_tflops(device: torch.device) -> float | None:
    """What the device could do; None where nobody says."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that tensors took on a GPU since this was asked last; on a CPU, that were resident since the
    process began."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(most)
