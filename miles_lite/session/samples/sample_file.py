"""Samples as bytes: one safetensors file, readable in any language, with no pickled code.

Invariant: `decode_samples(encode_samples(s))` gives samples equal to `s`. Arrays of all samples lie end to end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load, save

from miles_lite.process.json_types import JsonObject
from miles_lite.sample import Sample, Status

_FIELDS = {
    "tokens": np.int32,
    "loss_mask": np.uint8,
    "logprobs": np.float32,
    "temperatures": np.float32,
    "weight_versions": np.int32,
}


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """safetensors bytes. Tensors: one per field, `routed_experts.<i>` where present, and JSON in `samples`."""
    rows = [{"length": len(sample), "status": sample.status, "metadata": sample.metadata} for sample in samples]
    tensors = {
        name: np.concatenate([np.empty(0, dtype), *(getattr(sample, name) for sample in samples)], dtype=dtype)
        for name, dtype in _FIELDS.items()
    }
    for index, sample in enumerate(samples):
        if sample.routed_experts is not None:
            tensors[f"routed_experts.{index}"] = np.ascontiguousarray(sample.routed_experts)
    tensors["samples"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    return bytes(save(tensors))


def decode_samples(data: bytes) -> list[Sample]:
    """The samples. Raises safetensors' error, or KeyError, for bytes that `encode_samples` did not write."""
    tensors = load(data)
    rows = json.loads(tensors["samples"].tobytes())
    samples, start = [], 0
    for index, row in enumerate(rows):
        end = start + row["length"]
        arrays: JsonObject = {name: tensors[name][start:end] for name in _FIELDS}
        experts = tensors.get(f"routed_experts.{index}")
        samples.append(Sample(**arrays, routed_experts=experts, status=Status(row["status"]), metadata=row["metadata"]))
        start = end
    return samples
