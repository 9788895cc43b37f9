"""Training: advantages, losses, batches, the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from miles_lite.config.choices import AdvantageEstimator, KLType, LossType
from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """algorithm: advantages, losses, batches."""

    loss_type: LossType = option(
        LossType.POLICY, help="sft_loss: imitate the rows of --prompt-data (from traces to-data), without rollouts"
    )
    advantage_estimator: AdvantageEstimator = option(AdvantageEstimator.GRPO, help="how rewards become advantages")
    disable_rewards_normalization: bool = option(False, help="use raw rewards as advantages")
    disable_grpo_std_normalization: bool = option(False, help="subtract the group mean only (Dr. GRPO)")
    eps_clip: float = option(0.2, help="lower clip range of the importance ratio", least=0)
    eps_clip_high: float | None = option(None, help="upper clip range (default: --eps-clip)", least=0)
    eps_clip_c: float | None = option(None, help="dual clip: bound for negative advantages, > 1", above=1)
    use_kl_loss: bool = option(False, help="add a KL loss to the reference model")
    kl_loss_coef: float = option(0.0, help="its weight; 0 only logs it", least=0)
    kl_loss_type: KLType = option(KLType.K1, help="its estimator")
    entropy_coef: float = option(0.0, help="entropy bonus")
    use_rollout_logprobs: bool = option(False, help="old logprobs are the engine's, not the trainer's recomputation")
    use_rollout_routing_replay: bool = option(
        False, help="engines return the experts that routed each token, and samples carry them"
    )
    use_tis: bool = option(False, help="truncated importance sampling between trainer and engine")
    tis_clip: float = option(2.0, help="its upper bound", above=0)
    tis_clip_low: float = option(0.0, help="its lower bound", least=0)
    calculate_per_token_loss: bool = option(False, help="average over tokens, not over rollouts")
    global_batch_size: int | None = option(
        None, help="rollouts per optimizer step (default: all of a rollout)", least=1
    )
    num_steps_per_rollout: int | None = option(
        None, help="optimizer steps per rollout; sets --global-batch-size", least=1
    )
    micro_batch_size: int = option(1, help="samples per forward pass", least=1)
    use_dynamic_batch_size: bool = option(False, help="pack samples into micro-batches by token budget")
    max_tokens_per_gpu: int | None = option(None, help="that budget, tokens per micro-batch", least=1)
    disable_tree_training: bool = option(False, help="compute a prefix that samples share once for each of them")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optimizer: AdamW."""

    lr: float = option(1e-6, help="learning rate", least=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] = option("constant", help="its schedule")
    lr_warmup_iters: int = option(0, help="optimizer steps of linear warm-up", least=0)
    min_lr: float = option(0.0, help="where decay ends", least=0)
    weight_decay: float = option(0.1, help="decoupled weight decay", least=0)
    adam_beta1: float = option(0.9, help="AdamW beta1", least=0, below=1)
    adam_beta2: float = option(0.98, help="AdamW beta2", least=0, below=1)
    adam_eps: float = option(1e-8, help="AdamW epsilon", above=0)
    clip_grad: float = option(1.0, help="gradient norm clip; 0: off", least=0)
    train_threads: int | None = option(None, help="CPU threads per train rank (default: cores / ranks)", least=1)
