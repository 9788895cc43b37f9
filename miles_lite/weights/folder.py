"""Weights as Hugging Face folders that engines load.

Invariant: a folder that exists is complete: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miles_lite.errors import writing

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def write_folder(model: Any, state: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype) -> None:
    """`config.json`, `generation_config.json` and safetensors of a model's whole `state`, in `dtype`.

    A folder that stood there is replaced. Names and shards are those of `save_pretrained`, so whatever reads Hugging
    Face folders reads this one.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing("the weights", folder):
        model.save_pretrained(partial, state_dict=prepared(model, state, dtype))
    replace_folder(partial, folder)


def prepared(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """`state` with floats in `dtype`, and without the weights that are tied to others: files do not hold them."""
    return {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name not in model.all_tied_weights_keys
    }


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`, and only then remove the folder that stood there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy_tokenizer(source: Path, folder: Path, *, template: str | None = None) -> None:
    """Copy every file of a model folder that is no weight and is not in `folder` yet: tokenizer, template, code.

    The file `template` takes the place of the model's chat template.
    """
    if template is not None:
        shutil.copy2(template, folder / "chat_template.jinja")
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES) and not (folder / path.name).exists():
            shutil.copy2(path, folder / path.name)
