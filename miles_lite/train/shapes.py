"""Whether a model can be cut as the parallel sizes say, read from its config.json before anything is started."""

from __future__ import annotations

from pathlib import Path

from miles_lite.config.parallel import Parallelism
from miles_lite.errors import UserError
from miles_lite.model_folder import text_config
from miles_lite.train.attention import unpackable
from miles_lite.train.loading import read_config

CUT_BY_TENSOR = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "vocab_size",
)
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def check_shapes(folder: Path, sizes: Parallelism) -> None:
    """Raises UserError naming what of the model a size does not divide, or what of it cannot be shared at all."""
    _check_divisors(folder, sizes)
    if sizes.shares_layers:
        _check_plans(folder, sizes)


def _check_divisors(folder: Path, sizes: Parallelism) -> None:
    config = text_config(folder)
    tensor, experts = sizes.tensor_model_parallel_size, sizes.expert_model_parallel_size
    for name in CUT_BY_TENSOR:
        shared_out = name == "moe_intermediate_size" and experts > 1
        if (config.get(name) or 0) % tensor and not shared_out:
            raise UserError(
                f"--tensor-model-parallel-size {tensor} does not divide {name} {config[name]} of "
                f"{folder}/config.json: every rank needs an equal part. Take a divisor of it"
            )
    count: int = next((config[name] for name in EXPERT_COUNTS if config.get(name)), 0)
    if experts > 1 and count == 0:
        raise UserError(f"--expert-model-parallel-size {experts}: {folder}/config.json tells of no experts")
    if experts > 1 and count % experts:
        raise UserError(
            f"--expert-model-parallel-size {experts} does not divide the {count} experts of {folder}/config.json"
        )


def _check_plans(folder: Path, sizes: Parallelism) -> None:
    config = read_config(folder)
    text = config.get_text_config()
    needed = (
        ("--tensor-model-parallel-size", sizes.tensor_model_parallel_size, "base_model_tp_plan"),
        ("--expert-model-parallel-size", sizes.expert_model_parallel_size, "base_model_ep_plan"),
    )
    for flag, size, plan in needed:
        if size > 1 and not getattr(text, plan, None):
            raise UserError(
                f"{flag} {size}: transformers has no plan to cut a {text.model_type} so. Leave it out: layers are "
                "sharded over data-parallel ranks"
            )
    if sizes.context_parallel_size > 1 and (why := unpackable(config)) is not None:
        raise UserError(
            f"--context-parallel-size {sizes.context_parallel_size}: ranks share rows of packed sequences, and "
            f"{folder} cannot be packed: {why}. Leave it out"
        )
