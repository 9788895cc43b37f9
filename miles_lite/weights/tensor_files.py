"""Safetensors files that are written tensor by tensor, as they come.

Invariant: byte for byte what `save_pretrained` writes of the same weights, each with memory of its own; that needs all
of them at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from miles_lite.errors import writing
from miles_lite.weights.folder import replace_folder
from miles_lite.weights.gather import Published

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SHARD_SIZE = "50GB"
Fetch = Callable[[Sequence[str]], Iterable[Tensor]]
"""Gives the tensors of some names, in order."""


def write_folder(weights: Published, folder: Path) -> None:
    """`config.json`, `generation_config.json` and safetensors of a model's `weights`.

    A folder that stood there is replaced. Names and shards are those of `save_pretrained`, so whatever reads Hugging
    Face folders reads this one.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing("the weights", folder):
        weights.model.save_pretrained(partial, state_dict={})
        write_tensors(partial, weights.layout, weights.fetch, parameters=weights.model.num_parameters())
    replace_folder(partial, folder)


def write_tensors(folder: Path, layout: Mapping[str, Tensor], fetch: Fetch, *, parameters: int) -> None:
    """`model.safetensors`, or its shards and their index, of the tensors whose shapes and dtypes are in `layout`."""
    pattern = "model{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(dict(layout), filename_pattern=pattern, max_shard_size=SHARD_SIZE)
    for file, names in split.filename_to_tensors.items():
        _write(folder / file, {name: layout[name] for name in names}, fetch)
    if split.is_sharded:
        metadata = {"total_parameters": parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write(path: Path, layout: Mapping[str, Tensor], fetch: Fetch) -> None:
    """One file: the header's length, the header, the tensors by size of their elements and by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    at = 0
    for name, tensor in sorted(layout.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        starts[name], end = at, at + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        first = file.tell()
        for name, tensor in zip(layout, fetch(list(layout)), strict=True):
            file.seek(first + starts[name])
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
