"""What options cannot be on a kind of device, which --device auto leaves open until the slots are known."""

from __future__ import annotations

from miles_lite.config.choices import Device
from miles_lite.config.debugging import Debugging
from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.config.rules import Rules


def on_device(device: Device, sizes: Parallelism, compute: Compute, debugging: Debugging) -> Rules:
    """Of trainers whose slots are such devices."""
    cpu = device == "cpu"
    return [
        (
            cpu and compute.flashes,
            f"--attn-implementation {compute.attn_implementation} needs GPUs, and this run trains on CPUs: leave it "
            "out; auto packs sequences into rows there too",
        ),
        (
            cpu and debugging.record_memory_history,
            "--record-memory-history records the memory of CUDA devices, and this run trains on CPUs: leave it out; "
            "perf/peak_memory_gb says how much a rank takes",
        ),
        (
            not cpu and sizes.data_parallel_sharding_strategy == "no_shard",
            "--data-parallel-sharding-strategy no_shard: only on CPU, and without tensor, context or expert "
            "parallelism; leave it out",
        ),
    ]
