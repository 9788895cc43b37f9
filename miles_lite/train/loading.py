"""Hugging Face models for training: whole, or made empty, sharded by others, and then filled from their files.

Invariant: float32 masters; nothing but what the folder's files hold ends up in a model. An empty one is on the meta
device; `fill` reads of each tensor only what this rank keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from miles_lite.config.parallel import Compute
from miles_lite.errors import UserError
from miles_lite.model_folder import model_config
from miles_lite.train.attention import implementation
from miles_lite.weights.compat import fill_from_files, import_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def load_model(folder: str | Path, compute: Compute | None = None) -> PreTrainedModel:
    """The causal model of a Hugging Face folder, float32, on the CPU. Raises UserError when there is none."""
    config = read_config(folder)
    model: PreTrainedModel = import_transformers().AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=_attention(config, compute), local_files_only=True
    )
    return _prepared(model, folder, compute)


def empty_model(folder: str | Path, compute: Compute | None = None) -> PreTrainedModel:
    """The same on the meta device, without weights."""
    config = read_config(folder)
    with torch.device("meta"):
        model: PreTrainedModel = import_transformers().AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=_attention(config, compute)
        )
    model.train(False)
    return _prepared(model, folder, compute)


def fill(model: PreTrainedModel, folder: str | Path, *, device: torch.device) -> None:
    """Load an empty model, which may be sharded (its parameters DTensors), from the folder's files onto a device.

    Raises UserError when they lack some of its weights, or are no safetensors.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: has no *.safetensors, of which ranks that share a model read their parts")
    missing = fill_from_files(model, files, folder=folder, device=device)
    if missing:
        raise UserError(f"{folder}: its files have no {', '.join(sorted(missing)[:3])} ({len(missing)} missing)")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def read_config(folder: str | Path) -> PretrainedConfig:
    """Its config.json, as transformers reads it. Raises UserError when there is none."""
    model_config(folder, given_as="no model in")
    config: PretrainedConfig = import_transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
    return config


def vocabulary(config: PretrainedConfig) -> int:
    """Ids that a model scores, of which its tokenizer may use less."""
    return int(config.get_text_config().vocab_size)


def _attention(config: PretrainedConfig, compute: Compute | None) -> str:
    chosen = compute.attn_implementation if compute else "auto"
    return implementation(config) if chosen == "auto" else chosen


def _prepared(model: PreTrainedModel, folder: str | Path, compute: Compute | None) -> PreTrainedModel:
    """The model, if its logits are what its head gives, recomputing the layers that it is to."""
    config = model.config.get_text_config()
    for name in LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1.0):
            raise UserError(f"{folder}: config.json sets {name}; models that transform their logits are not supported")
    if compute is not None and compute.recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        count = compute.recompute_num_layers if compute.recompute_method == "block" else None
        _recompute(layers_of(model), count)
    return model


def _recompute(layers: Iterable[nn.Module], count: int | None) -> None:
    """Recompute the first `count` layers (None: all). A layer does so in training mode; what is in it stays in
    evaluation mode, which has no dropout."""
    for number, layer in enumerate(layers):
        layer.training = count is None or number < count
