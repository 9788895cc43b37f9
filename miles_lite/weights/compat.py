"""What the trainer and the way of weights use of torch, transformers and SGLang beyond their public interfaces.

Tested with torch 2.13, transformers 5.19 and SGLang 0.5.23; `tests/weights/test_compat.py` says what of it has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroup, Store  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _new_process_group_helper, _world

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def process_group(store: Store, *, name: str, backend: str, world_size: int, timeout: timedelta) -> ProcessGroup:
    """A process group beside the default one, of which this process is rank 0. Raises RuntimeError after `timeout`.

    torch's public constructors only make subgroups of the default group; SGLang builds its side with the same helper.
    """
    group: ProcessGroup
    group, _ = _new_process_group_helper(
        world_size,
        0,
        [],
        dist.Backend(backend),
        PrefixStore(name, store),
        group_name=name,  # type: ignore[arg-type]
        timeout=timeout,
    )
    _world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group


def left_out(model: PreTrainedModel) -> set[str]:
    """What of the model's state its checkpoint files do not hold: weights tied to others, and what can be computed."""
    return {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}


def published(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names and in the shapes of the model's checkpoint files, as `save_pretrained` writes them:
    transformers keeps some weights in another form (experts are fused). A part of a state is enough, if what belongs
    together is in it."""
    import_transformers()
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, dict(state))
    return reverted


def fill_from_files(
    model: PreTrainedModel, files: Sequence[Path], *, folder: str | Path, device: torch.device
) -> set[str]:
    """Load a model on the meta device from its safetensors files, as `from_pretrained` does, and its buffers with it;
    the names of weights that the files lack. Of a parameter that is a DTensor only this rank's part is read, into
    memory of its own: what is mapped from a file counts as this process's until the last tensor has gone."""
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    told = LoadStateDictConfig(
        pretrained_model_name_or_path=str(folder),
        device_map={"": device},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]
    )
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt", backend="pread")) for file in files]
        slices = {name: each.get_slice(name) for each in opened for name in each.keys()}  # noqa: SIM118
        found, _ = convert_and_load_state_dict_in_model(model, slices, told)
    return set(model._finalize_model_loading(model, told, found).missing_keys)


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """What AutoModelForCausalLM makes of a config; None where it has nothing for it."""
    known = import_transformers().AutoModelForCausalLM._model_mapping
    kind: type[PreTrainedModel] | None = known.get(type(config), None)
    return kind


def takes_attention_functions(kind: type[PreTrainedModel]) -> bool:
    """Whether models of the class compute attention by a function that is registered, and keep no state besides."""
    return bool(not kind._is_stateful and kind._supports_attention_backend and kind._supports_sdpa)


def takes_sdpa(kind: type[PreTrainedModel]) -> bool:
    """Whether models of the class can compute attention by torch's own function."""
    return bool(kind._supports_sdpa)


def attention_name(model: PreTrainedModel) -> str:
    """The `attn_implementation` that a model was loaded with."""
    return str(model.config._attn_implementation)


def place_in_bucket(name: str, shape: torch.Size, dtype: torch.dtype, start: int) -> SimpleNamespace:
    """SGLang's metadata of a tensor in a flattened bucket (its FlattenedTensorMetadata); it starts at byte `start`."""
    size = shape.numel() * dtype.itemsize
    return SimpleNamespace(name=name, shape=shape, dtype=dtype, start_idx=start, end_idx=start + size, numel=size)


def import_transformers() -> Any:
    """The `transformers` module, importable also beside a torchvision that was built for another torch.

    transformers imports torchvision wherever it is installed. A CUDA build of it next to a CPU torch fails for want of
    two operators that no language model calls; declaring them is enough.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return transformers
    except RuntimeError:
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return transformers
