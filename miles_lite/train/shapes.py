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
    """Raises UserError naming what of the model a size does not divide."""
    config = text_config(folder)
    tensor, experts = sizes.tensor_model_parallel_size, sizes.expert_model_parallel_size
    for name in CUT_BY_TENSOR:
        if (config.get(name) or 0) % tensor:
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
    if sizes.context_parallel_size > 1 and (why := unpackable(read_config(folder))) is not None:
        raise UserError(
            f"--context-parallel-size {sizes.context_parallel_size}: ranks share rows of packed sequences, and "
            f"{folder} cannot be packed: {why}. Leave it out"
        )
