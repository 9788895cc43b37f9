"""Training: advantages, losses, batches, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from miles_lite.config.algorithms import ADVANTAGES, LOSSES, SFT, Estimator, Loss, estimator_named, loss_named, read_by
from miles_lite.config.choices import Bounding, KLType, Level, Reduction, RoutingReplay
from miles_lite.config.option import option
from miles_lite.config.teachers import absolute_folders, named


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """algorithm: advantages, losses, batches."""

    loss_type: str = option(
        "policy_loss",
        help="loss by name, dotted path or file.py:name; sft_loss: imitate the rows of --prompt-data (from traces "
        "to-data), without rollouts",
        named=(*LOSSES, "custom_loss"),
    )
    custom_loss_function_path: str | None = option(None, help="dotted path or file.py:name of the custom_loss")
    importance_sampling_level: Level | None = option(
        None, help="what the ratio of the loss is of (default: what its paper says)"
    )
    advantage_estimator: str = option(
        "grpo", help="how rewards become advantages: by name, dotted path or file.py:name", named=tuple(ADVANTAGES)
    )
    custom_reward_post_process_path: str | None = option(
        None, help="dotted path or file.py:name of (groups, options) -> rewards in the place of those that were earned"
    )
    disable_rewards_normalization: bool = option(False, help="use raw rewards as advantages")
    disable_grpo_std_normalization: bool = option(False, help="subtract the group mean only (Dr. GRPO)", with_=read_by)
    normalize_advantages: bool = option(False, help="whiten advantages over all trained tokens of the batch")
    gamma: float = option(1.0, help="discount of later rewards, by token or turn", least=0, most=1, with_=read_by)
    lambd: float = option(1.0, help="lambda of generalised advantage estimation", least=0, most=1, with_=read_by)
    value_loss_coef: float = option(0.5, help="weight of the value head's loss", least=0, with_=read_by)
    value_clip: float = option(0.2, help="how far a value may move from its old one", least=0, with_=read_by)
    eps_clip: float = option(0.2, help="lower clip range of the importance ratio", least=0, with_=read_by)
    eps_clip_high: float | None = option(None, help="upper clip range (default: --eps-clip)", least=0, with_=read_by)
    eps_clip_c: float | None = option(None, help="dual clip: bound for negative advantages, > 1", above=1)
    sapo_tau_pos: float = option(
        1.0, help="SAPO: temperature of the gate for positive advantages", above=0, with_=read_by
    )
    sapo_tau_neg: float = option(1.05, help="SAPO: temperature of the gate for the others", above=0, with_=read_by)
    dppo_tv: float = option(0.2, help="dppo_tv: largest difference of a token's probability", least=0, with_=read_by)
    dppo_kl: float = option(
        0.05, help="dppo_kl: largest binary KL divergence of a token, in nats", least=0, with_=read_by
    )
    cov_ratio: float = option(
        2e-4, help="clip_cov, kl_cov: share of tokens that are held back", least=0, most=1, with_=read_by
    )
    cov_low: float = option(1.0, help="clip_cov: least covariance of a token that is held back", least=0, with_=read_by)
    cov_high: float = option(5.0, help="clip_cov: largest", least=0, with_=read_by)
    kl_cov_coef: float = option(1.0, help="kl_cov: weight of their KL penalty", least=0, with_=read_by)
    use_kl_loss: bool = option(False, help="add a KL loss to the reference model")
    kl_loss_coef: float = option(0.0, help="its weight; 0 only logs it", least=0, needs="use_kl_loss")
    kl_loss_type: KLType = option(KLType.K1, help="its estimator", with_="use_kl_loss or kl_coef")
    use_unbiased_kl: bool = option(
        False, help="weigh it by the ratio of new to old policy (DeepSeek-V3.2)", needs="use_kl_loss"
    )
    kl_coef: float = option(0.0, help="penalty per nat of KL to the reference model, taken from the rewards", least=0)
    entropy_coef: float = option(0.0, help="entropy bonus")
    entropy_clamp: float | None = option(
        None, help="nats of a token's entropy above which it earns no more", above=0, needs="entropy_coef"
    )
    echo_coef: float = option(
        0.0, help="weight of the cross-entropy on what the agent was told between its turns (ECHO)", least=0
    )
    use_rollout_logprobs: bool = option(False, help="old logprobs are the engine's, not the trainer's recomputation")
    use_approximate_old_logprobs: bool = option(
        False, help="old logprobs lie between the engine's and the current ones, by staleness (A-3PO)"
    )
    keep_old_actor: bool = option(
        False,
        help="keep the weights of the step before, too: old logprobs of tokens that they sampled are theirs",
        with_="max_weight_staleness or fully_async or partial_rollout",
    )
    use_opd: bool = option(False, help="distil on policy; needs --opd-teacher, which implies it")
    opd_teacher: tuple[str, ...] = option(
        (),
        help="FOLDER or URL of an SGLang server, or several NAME=FOLDER and NAME=URL: who says how likely a sampled "
        "token is",
        path=absolute_folders,
        aka=("--opd-teacher-load",),
    )
    opd_teacher_key: str | None = option(None, help="key of a prompt's metadata that names its teacher")
    opd_type: Literal["sglang", "megatron"] | None = option(
        None,
        help="sglang: all teachers are URLs; megatron: all are folders, which train ranks run",
        with_="opd_teacher",
    )
    opd_kl_coef: float = option(
        1.0, help="penalty per nat of log(policy / teacher), taken from advantages", least=0, with_="opd_teacher"
    )
    opd_loss_coef: float = option(0.0, help="weight of the KL to the teacher as a loss", least=0, with_="opd_teacher")
    opd_loss_type: KLType = option(KLType.K2, help="its estimator", with_="opd_loss_coef and no opd_log_prob_top_k")
    opd_log_prob_top_k: int = option(
        0,
        help="tokens per place that it is the divergence on, in the place of the sampled one's estimate",
        least=0,
        needs="opd_loss_coef and opd_teacher",
    )
    opd_top_k_strategy: Literal["only-student", "only-teacher"] = option(
        "only-student", help="whose likeliest tokens those are", with_="opd_log_prob_top_k"
    )
    opd_reward_weight_mode: Literal["student_p", "teacher_p"] = option(
        "student_p",
        help="whose probabilities weigh them: KL(policy || teacher) or KL(teacher || policy)",
        with_="opd_log_prob_top_k",
    )
    use_rollout_routing_replay: RoutingReplay = option(
        RoutingReplay.OFF,
        help="train each token with the experts that engines chose for it; strict: refuse samples that lack them",
        nargs="?",
        const="on",
    )
    use_tis: bool = option(False, help="importance weights between trainer and engine")
    tis_clip: float = option(2.0, help="their upper bound", above=0, with_="use_tis or custom_tis_function_path")
    tis_clip_low: float = option(0.0, help="their lower bound", least=0, with_="use_tis or custom_tis_function_path")
    tis_level: Level = option(Level.TOKEN, help="what they are of", needs="use_tis")
    tis_mode: Bounding = option(
        Bounding.CLIP, help="what becomes of those out of bounds (mask: IcePop, MIS)", needs="use_tis"
    )
    custom_tis_function_path: str | None = option(None, help="dotted path or file.py:name of weights of your own")
    use_rs: bool = option(False, help="reject sequences, or tokens, that the trainer finds too unlike the engine's")
    rs_level: Level = option(Level.SEQUENCE, help="whose ratio must be within the bounds", with_="use_rs")
    rs_lower_bound: float = option(0.5, help="least ratio that is kept", least=0, with_="use_rs")
    rs_upper_bound: float = option(2.0, help="largest ratio that is kept", above=0, with_="use_rs")
    rs_veto_threshold: float | None = option(
        None, help="a token whose ratio is below rejects its whole sequence", least=0, needs="use_rs"
    )
    use_opsm: bool = option(False, help="mask off-policy sequences of negative advantage (DeepSeek-V3.2)")
    opsm_delta: float = option(1e-4, help="mean of old minus new logprob from where on", least=0, with_="use_opsm")
    loss_reduction: Reduction | None = option(
        None, help="what the loss is the mean of (default: rollouts, or what the estimator's paper says)"
    )
    loss_constant_length: int | None = option(
        None,
        help="tokens that --loss-reduction constant divides by (default: --rollout-max-response-len)",
        least=1,
        with_="loss_reduction=constant or advantage_estimator=dr_grpo and no calculate_per_token_loss",
    )
    calculate_per_token_loss: bool = option(False, help="average over tokens, not over rollouts")
    global_batch_size: int | None = option(
        None, help="rollouts per optimizer step (default: all of a rollout)", least=1
    )
    num_steps_per_rollout: int | None = option(
        None, help="optimizer steps per rollout; sets --global-batch-size", least=1
    )
    micro_batch_size: int = option(1, help="samples per forward pass", least=1, with_="no use_dynamic_batch_size")
    use_dynamic_batch_size: bool = option(False, help="pack samples into micro-batches by token budget")
    max_tokens_per_gpu: int | None = option(
        None, help="that budget, tokens per micro-batch", least=1, with_="use_dynamic_batch_size"
    )
    disable_tree_training: bool = option(False, help="compute a prefix that samples share once for each of them")

    @property
    def estimator(self) -> Estimator:
        """What --advantage-estimator names."""
        return estimator_named(self.advantage_estimator)

    @property
    def loss(self) -> Loss:
        """What --loss-type names; the estimator's own where that is the default."""
        return loss_named(self.loss_name)

    @property
    def loss_name(self) -> str:
        """Its name, or its path."""
        named = self.loss_type if self.loss_type != "policy_loss" else self.estimator.loss or self.loss_type
        return self.custom_loss_function_path or named

    @property
    def level(self) -> Level:
        """What the ratio of the loss is of."""
        return self.importance_sampling_level or self.loss.level

    @property
    def reduction(self) -> Reduction:
        """What the loss is the mean of."""
        if self.calculate_per_token_loss:
            return Reduction.TOKEN
        return self.loss_reduction or self.estimator.reduction or Reduction.ROLLOUT

    @property
    def imitates(self) -> bool:
        """Whether nothing is rolled out."""
        return self.loss_type == SFT

    @property
    def compares_with_engine(self) -> bool:
        """Whether tokens are weighed by the ratio of the trainer's to the engine's probability."""
        return self.use_tis or self.use_rs or self.custom_tis_function_path is not None

    @property
    def teachers(self) -> Mapping[str, str]:
        """Where each teacher is, by name."""
        return named(self.opd_teacher)

    @property
    def distils(self) -> bool:
        """Whether there are any."""
        return bool(self.opd_teacher)

    @property
    def compares(self) -> bool:
        """Whether a reference model is needed."""
        return self.use_kl_loss or self.kl_coef > 0


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optimizer: AdamW."""

    lr: float = option(1e-6, help="learning rate", least=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] = option("constant", help="its schedule")
    lr_warmup_iters: int = option(0, help="optimizer steps of linear warm-up", least=0, with_="no lr_warmup_fraction")
    lr_warmup_fraction: float | None = option(None, help="the same as a share of all optimizer steps", least=0, most=1)
    min_lr: float = option(
        0.0, help="where decay ends", least=0, with_="lr_decay_style=linear or lr_decay_style=cosine"
    )
    weight_decay: float = option(0.1, help="decoupled weight decay", least=0)
    adam_beta1: float = option(0.9, help="AdamW beta1", least=0, below=1)
    adam_beta2: float = option(0.98, help="AdamW beta2", least=0, below=1)
    adam_eps: float = option(1e-8, help="AdamW epsilon", above=0)
    clip_grad: float = option(1.0, help="gradient norm clip; 0: off", least=0)
    train_threads: int | None = option(None, help="CPU threads per train rank (default: cores / ranks)", least=1)

    def warmed(self, updates: int) -> Self:
        """With the warm-up's share as a number of `updates`."""
        return replace(self, lr_warmup_iters=round((self.lr_warmup_fraction or 0.0) * updates))
