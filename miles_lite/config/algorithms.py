"""Losses and advantage estimators by name: where each is found, and what it goes with.

Invariant: nothing is imported here. A name stands for an import path, and the path that a user gives instead of a name
is loaded alike: one more is a module and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from miles_lite.config.choices import Level, Reduction

SFT = "sft_loss"
EVERYWHERE = "miles_lite.train.advantages.tokens:everywhere"


@dataclass(frozen=True)
class Loss:
    """A policy loss (`hooks.LossFunction`).

    path    of the function
    flags   fields of `Algorithm` that it reads
    level   what its importance ratio is of; `levels`: what --importance-sampling-level may make it
    """

    path: str
    flags: tuple[str, ...] = ()
    level: Level = Level.TOKEN
    levels: tuple[Level, ...] = ()

    @property
    def allowed(self) -> tuple[Level, ...]:
        return self.levels or (self.level,)


@dataclass(frozen=True)
class Estimator:
    """An advantage estimator.

    path          of what it makes of a group's rewards (`hooks.AdvantageFunction`)
    flags         fields of `Algorithm` that it reads
    tokens        of what spreads that over tokens (`train.advantages.tokens.TokenAdvantages`)
    standardized  over the batch's rollouts; `whitened`: over the batch's trained tokens
    critic        it needs values of a value head
    loss, reduction  what its paper takes, where no flag says otherwise
    least         rollouts per prompt without which it has nothing to compare
    least_reward  below which a reward means nothing to it
    ignores_reward  it looks at others than the rollout's own, or at none
    reads         what it takes from what the agent function returned: numbers (or None) by name, or in a list
    """

    path: str
    flags: tuple[str, ...] = ()
    tokens: str = EVERYWHERE
    standardized: bool = False
    whitened: bool = False
    critic: bool = False
    loss: str | None = None
    reduction: Reduction | None = None
    least: int = 1
    least_reward: float | None = None
    ignores_reward: bool = False
    reads: str | None = None


_LOSS = "miles_lite.train.losses."
_ADVANTAGE = "miles_lite.train.advantages."
_BOTH = (Level.TOKEN, Level.SEQUENCE)
_CLIP = ("eps_clip", "eps_clip_high")
_GROUP = ("disable_rewards_normalization", "disable_grpo_std_normalization")

LOSSES: Mapping[str, Loss] = {
    "policy_loss": Loss(_LOSS + "policy_gradient:policy_gradient", (*_CLIP, "eps_clip_c"), levels=_BOTH),
    "reinforce": Loss(_LOSS + "reinforce:reinforce"),
    "gspo": Loss(_LOSS + "gspo:gspo", (*_CLIP, "eps_clip_c"), level=Level.SEQUENCE),
    "cispo": Loss(_LOSS + "cispo:cispo", _CLIP),
    "gmpo": Loss(_LOSS + "gmpo:gmpo", _CLIP, level=Level.SEQUENCE),
    "sapo": Loss(_LOSS + "sapo:sapo", ("sapo_tau_pos", "sapo_tau_neg")),
    "dppo_tv": Loss(_LOSS + "dppo:total_variation", ("dppo_tv",)),
    "dppo_kl": Loss(_LOSS + "dppo:kullback_leibler", ("dppo_kl",)),
    "clip_cov": Loss(_LOSS + "covariance:clip_cov", (*_CLIP, "cov_ratio", "cov_low", "cov_high")),
    "kl_cov": Loss(_LOSS + "covariance:kl_cov", ("cov_ratio", "kl_cov_coef")),
    SFT: Loss(_LOSS + "cross_entropy:cross_entropy"),
}

ADVANTAGES: Mapping[str, Estimator] = {
    "grpo": Estimator(_ADVANTAGE + "grpo:grpo", _GROUP),
    "gspo": Estimator(_ADVANTAGE + "grpo:grpo", _GROUP, loss="gspo"),
    "dr_grpo": Estimator(_ADVANTAGE + "centred:centred", reduction=Reduction.CONSTANT, least=2),
    "mean_only": Estimator(_ADVANTAGE + "centred:centred", least=2),
    "rloo": Estimator(_ADVANTAGE + "rloo:rloo", least=2),
    "opo": Estimator(_ADVANTAGE + "opo:opo", least=2),
    "maxrl": Estimator(_ADVANTAGE + "maxrl:maxrl", least=2, least_reward=0.0),
    "gdpo": Estimator(
        _ADVANTAGE + "gdpo:gdpo", _GROUP[1:], standardized=True, least=2, ignores_reward=True, reads="rewards"
    ),
    "per_turn": Estimator(_ADVANTAGE + "per_turn:per_turn", (*_GROUP, "gamma"), least=2, reads="turn_rewards"),
    "reinforce_plus_plus": Estimator(
        _ADVANTAGE + "raw_rewards:rewards", ("gamma",), tokens=_ADVANTAGE + "tokens:discounted", whitened=True
    ),
    "reinforce_plus_plus_baseline": Estimator(_ADVANTAGE + "centred:centred", whitened=True, least=2),
    "ppo": Estimator(
        _ADVANTAGE + "raw_rewards:rewards",
        ("gamma", "lambd", "value_clip", "value_loss_coef"),
        tokens=_ADVANTAGE + "gae:gae",
        critic=True,
    ),
    "on_policy_distillation": Estimator(_ADVANTAGE + "raw_rewards:nothing", ("opd_kl_coef",), ignores_reward=True),
}


def read_by(flag: str) -> str:
    """The losses, or the estimators, that read a field of `Algorithm`, as `Option.with_` names them."""
    losses = [f"loss_type={name}" for name, each in LOSSES.items() if flag in each.flags]
    estimators = [f"advantage_estimator={name}" for name, each in ADVANTAGES.items() if flag in each.flags]
    return " or ".join([*losses, *estimators, *(["loss_type=custom_loss"] if losses else [])])


def loss_named(name: str) -> Loss:
    """The one of that name, or of the user's at that path, whose ratio may be anything."""
    return LOSSES.get(name) or Loss(name, levels=_BOTH)


def estimator_named(name: str) -> Estimator:
    """The one of that name, or the user's at that path."""
    return ADVANTAGES.get(name) or Estimator(name)
