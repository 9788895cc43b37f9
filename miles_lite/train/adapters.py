"""LoRA (arXiv:2106.09685), by `peft`: small matrices beside a model's own, which alone are trained.

Invariant: with adapters disabled the model is the one that was loaded, to the bit; what leaves the trainer under the
model's own names has them merged in: W + alpha / rank x B A. Adapters are put in before a model is sharded, so that
they are sharded as their neighbours are, and its files are read under the names that they have.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional

from miles_lite.config.lora import LoRA
from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError
from miles_lite.train.norms import local
from miles_lite.train.packing import Packed
from miles_lite.train.policy import Policy
from miles_lite.weights.compat import import_transformers
from miles_lite.weights.gather import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
"""PEFT's own, of a model's only adapter."""

BASE = ".base_layer"
PREFIX = "base_model.model."
"""What PEFT's files put before a model's names."""


class Dropout(nn.Module):
    """Of an adapter's inputs, where a gradient is wanted: what is only scored is scored without."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, self.share, training=torch.is_grad_enabled())


class WithoutAdapters(Policy):
    """The reference model that costs nothing: an adapted policy with its adapters disabled."""

    def __init__(self, adapted: Policy) -> None:
        super().__init__(adapted.model)
        self._adapted = (adapted,)  # no child: the policy is sharded, saved and trained elsewhere

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WithoutAdapters:
        """Where the model lies is the policy's affair: this one rests nowhere."""
        del fn, recurse
        return self

    def forward(self, packed: Packed, *, entropy_gradient: bool = False, likeliest: int = 0) -> tuple[Tensor, ...]:
        with disabled(self.model):
            result: tuple[Tensor, ...] = self._adapted[0](
                packed, entropy_gradient=entropy_gradient, likeliest=likeliest
            )
        return result


def adapt(model: PreTrainedModel, options: LoRA, *, base: str) -> PreTrainedModel:
    """Put adapters into a model, which may be on the meta device; only they get gradients. `base` names the model.

    Raises UserError where peft is missing, or --target-modules names what is no linear layer, or the head.
    """
    import_transformers()
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("--lora-rank needs the package peft: pip install 'miles_lite[lora]'") from None
    _check_targets(model, options)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # any number does
        target_modules=linear_layers(model) if options.every_layer else list(options.target_modules),
        lora_dropout=options.lora_dropout,
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=NAME)
    except ValueError as error:  # peft's word for it
        raise UserError(f"--target-modules {' '.join(options.target_modules)}: {error}") from error
    for name, layer in layers(model).items():
        if not isinstance(layer.base_layer, nn.Linear):
            raise UserError(f"--target-modules {' '.join(options.target_modules)}: {name} is no linear layer")
        if options.lora_dropout:
            layer.lora_dropout[NAME] = Dropout(options.lora_dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def _check_targets(model: PreTrainedModel, options: LoRA) -> None:
    """Each name is some part's, and none the head's, which scores without adapters (`Policy.scored`)."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    parts = {f".{name}": part for name, part in (*model.named_modules(), *model.named_parameters())}
    for target in () if options.every_layer else options.target_modules:
        found = [part for name, part in parts.items() if name.endswith(f".{target}")]
        if not found:
            known = linear_layers(model)
            raise UserError(
                f"--target-modules {target}: the model has no such layer{nearest(target, known)}. It has "
                f"{', '.join(known)}"
            )
        if any(part is head for part in found):
            raise UserError(
                f"--target-modules {target}: the model's head gets no adapters, as its own weight scores tokens: leave "
                "it out"
            )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """How the names of all end but the head's; experts that are kept in one tensor are none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = (name for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head)
    return sorted({name.rpartition(".")[2] for name in linear})


def layers(model: nn.Module) -> dict[str, Any]:
    """The adapted linear layers by the names that they had before."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model as if it had none."""
    adapted = layers(model).values()
    for layer in adapted:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapted:
            layer._disable_adapters = False


@contextlib.contextmanager
def taken_out(model: nn.Module) -> Iterator[None]:
    """The model's modules under the names that its files know: each adapted layer's own stands in its place."""
    adapted = layers(model)
    for name, layer in adapted.items():
        model.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in adapted.items():
            model.set_submodule(name, layer)


@torch.no_grad()
def start(model: nn.Module, *, device: torch.device) -> None:
    """Give adapters their first values: A uniform within 1 / sqrt(its inputs), as peft's, and B 0, so that nothing
    changes. They depend on the layer's name alone, so they are the same on every mesh."""
    for name, layer in layers(model).items():
        down, up = layer.lora_A[NAME], layer.lora_B[NAME]
        for module in (down, up):
            if module.weight.is_meta:
                module.to_empty(device=device)
        chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        bound = down.in_features**-0.5
        first = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=chance).to(device)
        like = down.weight
        if isinstance(like, DTensor):
            like.copy_(distribute_tensor(first, like.device_mesh, like.placements, src_data_rank=None))
        else:
            like.copy_(first)
        up.weight.zero_()


@torch.no_grad()
def merged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, under the model's own names, with its adapters merged in. Collective where it is sharded."""
    adapted = layers(model)
    if not adapted:
        return state
    result = {name.replace(BASE, ""): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in adapted.items():
        down = whole(state[f"{name}.lora_A.{NAME}.weight"])
        up = local(state[f"{name}.lora_B.{NAME}.weight"])
        weight = result[f"{name}.weight"]
        more = layer.scaling[NAME] * (up @ own_columns(down, weight))
        result[f"{name}.weight"] = weight + shard_like(more, weight)
    return result


def own_columns(matrix: Tensor, weight: Tensor) -> Tensor:
    """Those that this rank has of `weight`, of which B's rows are this rank's anyway."""
    if isinstance(weight, DTensor):
        for number, placement in enumerate(weight.placements):
            if getattr(placement, "dim", 0) == 1:
                ranks, rank = weight.device_mesh.size(number), weight.device_mesh.get_local_rank(number)
                matrix = matrix.chunk(ranks, 1)[rank]
    return matrix


def shard_like(part: Tensor, weight: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread as `weight` is."""
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def save_adapter(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT reads them (rank 0 does). Collective."""
    tensors = {
        PREFIX + name.replace(f".{NAME}.", "."): whole(tensor).cpu().contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = model.peft_config[NAME]
    told = config.to_dict()
    told |= {"target_modules": sorted(told["target_modules"]), "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=2, default=str))
