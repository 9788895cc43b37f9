"""How the trainer's ranks share a model, and what they trade for memory. The names are Megatron's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """parallelism: how train ranks share the model; what these sizes leave over is data parallel."""

    tensor_model_parallel_size: int = option(1, help="ranks that share every layer's matrices", least=1)
    context_parallel_size: int = option(1, help="ranks that share the tokens of a forward pass", least=1)
    expert_model_parallel_size: int = option(
        1, help="ranks that share the experts of a layer, each holding whole ones", least=1
    )
    pipeline_model_parallel_size: int = option(
        1, help="accepted: its ranks become data parallel, and layers are sharded over them (FSDP2)", least=1
    )
    data_parallel_sharding_strategy: Literal["auto", "no_shard", "optim_grads_params"] = option(
        "auto",
        help="over data-parallel ranks: the whole model on each (no_shard: CPU, and nothing else is shared), or "
        "weights, gradients and optimizer sharded (FSDP2); auto shards on GPUs and where ranks share layers",
    )
    data_parallel_replicate_size: int = option(
        1, help="groups of data-parallel ranks that each hold a sharded copy (HSDP)", least=1
    )
    distributed_timeout_minutes: int = option(10, help="how long one rank may keep the others waiting", least=1)

    def notices(self) -> list[str]:
        """What becomes of sizes that mean something else here."""
        stages = self.pipeline_model_parallel_size
        return [
            f"--pipeline-model-parallel-size {stages}: there are no stages here; the ranks of what would be stages are "
            "data parallel, and hold every layer sharded"
        ] * (stages > 1)

    @property
    def ranks_per_batch(self) -> int:
        """Ranks that train the same batch together."""
        return self.tensor_model_parallel_size * self.context_parallel_size

    @property
    def shares_layers(self) -> bool:
        """Whether ranks share more than their sums."""
        return self.ranks_per_batch * self.expert_model_parallel_size * self.data_parallel_replicate_size > 1


@dataclass(frozen=True, kw_only=True)
class Compute:
    """compute: what the trainer computes with, and what it computes twice to save memory."""

    train_backend: Literal["fsdp", "megatron"] = option(
        "fsdp", help="what trains: Hugging Face models, sharded by FSDP2; megatron is refused, and says what it lacks"
    )
    recompute_granularity: Literal["full", "selective"] | None = option(
        None,
        help="full: activations of a layer are computed again in the backward pass; selective: those of attention "
        "alone, which fused attention does anyway",
    )
    recompute_method: Literal["uniform", "block"] | None = option(
        None,
        help="which layers: all, or with block the first --recompute-num-layers",
        with_="recompute_granularity=full or gradient_checkpointing",
    )
    recompute_num_layers: int | None = option(
        None, help="see --recompute-method block", least=1, with_="recompute_method=block"
    )
    gradient_checkpointing: bool = option(False, help="the same as --recompute-granularity full")
    optimizer_cpu_offload: bool = option(
        False, help="weights, gradients and optimizer live in host memory, and the optimizer steps there (GPUs)"
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = option(
        "auto", help="attention of the trainer's model; auto packs sequences into rows, the others pad them"
    )
    deterministic_mode: bool = option(False, help="only deterministic kernels, also on GPUs")

    @property
    def flashes(self) -> bool:
        """Whether attention is a package's, which needs a GPU."""
        return self.attn_implementation.startswith("flash")

    @property
    def recomputes(self) -> bool:
        """Whether layers keep their inputs alone."""
        return self.gradient_checkpointing or self.recompute_granularity == "full"
