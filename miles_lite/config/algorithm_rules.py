"""What the options of an algorithm cannot be together."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.algorithms import ADVANTAGES, LOSSES
from miles_lite.config.choices import Bounding, Level, Reduction
from miles_lite.config.parallel import Parallelism
from miles_lite.config.rewards import Chosen, Rewards
from miles_lite.config.rollouts import Evaluation, Rollouts
from miles_lite.config.rules import Rules
from miles_lite.config.teachers import is_url
from miles_lite.config.training import Algorithm


def all_rules(rollouts: Rollouts, rewards: Rewards, algorithm: Algorithm, evaluation: Evaluation) -> Rules:
    """Of losses, advantages and corrections."""
    return [
        *imitating(rollouts, algorithm, evaluation),
        *losses(algorithm),
        *off_policy(algorithm),
        *penalties(algorithm),
        *advantages(rollouts, algorithm),
        (
            too_low(rewards, rewards.rules, algorithm),
            too_low_words(f"--rm-type {' '.join(rewards.rm_type)}", algorithm),
        ),
        *shaping(rollouts, rewards, algorithm),
        *teaching(algorithm),
        *distillation(rollouts, algorithm),
    ]


def imitating(rollouts: Rollouts, algorithm: Algorithm, evaluation: Evaluation) -> Rules:
    """What needs rollouts, and has none."""
    imitates = algorithm.imitates
    return [
        (
            imitates and (rollouts.n_samples_per_prompt != 1 or evaluation.eval_interval is not None),
            "--loss-type sft_loss runs no engines: take --n-samples-per-prompt 1 and no --eval-interval",
        ),
        (
            imitates and (algorithm.compares_with_engine or algorithm.use_rollout_logprobs),
            "--loss-type sft_loss has no rollouts whose logprobs --use-tis, --use-rs or --use-rollout-logprobs could "
            "take",
        ),
        (
            imitates and (algorithm.estimator.critic or algorithm.normalize_advantages or algorithm.kl_coef > 0),
            "--loss-type sft_loss has no rewards: leave out --advantage-estimator, --normalize-advantages, --kl-coef",
        ),
    ]


def losses(algorithm: Algorithm) -> Rules:
    """What a loss is, and what it is the mean of."""
    named, custom = algorithm.loss_type, algorithm.custom_loss_function_path
    loss, level, reduction = algorithm.loss, algorithm.level, algorithm.reduction
    return [
        (
            (named == "custom_loss") != (custom is not None),
            "--loss-type custom_loss and --custom-loss-function-path need each other",
        ),
        (
            level not in loss.allowed,
            f"--importance-sampling-level {level}: {algorithm.loss_name} has ratios of a {loss.level} only",
        ),
        (
            level is Level.SEQUENCE and reduction in (Reduction.TOKEN, Reduction.CONSTANT),
            f"{algorithm.loss_name} has one ratio per sequence, which a mean over tokens would weigh by its length: "
            "leave out --calculate-per-token-loss, or take --loss-reduction sample, rollout or prompt",
        ),
        (
            algorithm.calculate_per_token_loss and algorithm.loss_reduction not in (None, Reduction.TOKEN),
            f"--calculate-per-token-loss contradicts --loss-reduction {algorithm.loss_reduction}: give one of them",
        ),
        (
            algorithm.eps_clip_c is not None and algorithm.loss_name in LOSSES and "eps_clip_c" not in loss.flags,
            f"--eps-clip-c: {algorithm.loss_name} has no dual clip",
        ),
    ]


def off_policy(algorithm: Algorithm) -> Rules:
    """What corrects for the policy that sampled."""
    return [
        (
            algorithm.use_rollout_logprobs and algorithm.use_tis,
            "--use-rollout-logprobs and --use-tis exclude each other: with the engine's logprobs nothing is left "
            "to correct",
        ),
        (
            algorithm.use_rollout_logprobs and algorithm.use_rs,
            "--use-rollout-logprobs and --use-rs exclude each other: the trainer's old logprobs are not computed",
        ),
        (
            algorithm.use_rollout_logprobs and algorithm.use_approximate_old_logprobs,
            "--use-rollout-logprobs and --use-approximate-old-logprobs exclude each other: give one of them",
        ),
        (
            algorithm.tis_clip_low > algorithm.tis_clip,
            f"--tis-clip-low {algorithm.tis_clip_low} is above --tis-clip {algorithm.tis_clip}",
        ),
        (
            algorithm.custom_tis_function_path is not None and algorithm.tis_mode is not Bounding.CLIP,
            "--custom-tis-function-path takes the place of --tis-mode: give one of them",
        ),
        (
            algorithm.rs_lower_bound > algorithm.rs_upper_bound,
            f"--rs-lower-bound {algorithm.rs_lower_bound} is above --rs-upper-bound {algorithm.rs_upper_bound}",
        ),
    ]


def shared_layers(algorithm: Algorithm, sizes: Parallelism) -> Rules:
    """What ranks that have parts of a model cannot do."""
    return [
        (
            sizes.tensor_model_parallel_size > 1 and algorithm.opd_log_prob_top_k > 0,
            "--opd-log-prob-top-k looks at the whole vocabulary: take --tensor-model-parallel-size 1",
        ),
    ]


def penalties(algorithm: Algorithm) -> Rules:
    """What keeps the policy near to another."""
    return [
        (
            algorithm.kl_coef > 0 and algorithm.kl_loss_coef > 0,
            "--kl-coef and --kl-loss-coef exclude each other: the KL penalty is in the rewards or in the loss",
        ),
    ]


def teaching(algorithm: Algorithm) -> Rules:
    """Who teaches."""
    teachers, key = algorithm.teachers, algorithm.opd_teacher_key
    return [
        (
            algorithm.use_opd and not teachers,
            "--use-opd needs --opd-teacher: a model folder, or the URL of an SGLang server",
        ),
        (
            algorithm.advantage_estimator == "on_policy_distillation" and not teachers,
            "--advantage-estimator on_policy_distillation needs --opd-teacher",
        ),
        (
            algorithm.distils and algorithm.imitates,
            "--opd-teacher judges what was sampled, and --loss-type sft_loss samples nothing: leave one out",
        ),
        (
            len(teachers) < len(algorithm.opd_teacher) or ("" in teachers and len(teachers) > 1),
            "--opd-teacher: several need a name each, and another each: NAME=FOLDER NAME=URL",
        ),
        (
            (len(teachers) > 1) != (key is not None),
            "--opd-teacher-key and several --opd-teacher need each other: it says which of them a prompt has",
        ),
    ]


def distillation(rollouts: Rollouts, algorithm: Algorithm) -> Rules:
    """What teachers say."""
    served = {is_url(where) for where in algorithm.teachers.values()}
    kind = algorithm.opd_type
    return [
        (
            (kind == "sglang" and False in served) or (kind == "megatron" and True in served),
            f"--opd-type {kind}: --opd-teacher must be {'a URL' if kind == 'sglang' else 'a folder'}",
        ),
        (
            True in served and rollouts.rollout_temperature != 1,
            f"--opd-teacher URL says logprobs of temperature 1, and --rollout-temperature is "
            f"{rollouts.rollout_temperature}: take a folder, or temperature 1",
        ),
        (
            algorithm.distils and algorithm.opd_kl_coef == algorithm.opd_loss_coef == 0,
            "--opd-teacher teaches nothing with --opd-kl-coef 0 and --opd-loss-coef 0: give one of them",
        ),
        (
            algorithm.opd_log_prob_top_k > 0 and True in served and algorithm.opd_top_k_strategy == "only-student",
            "--opd-log-prob-top-k: a server says what its own likeliest tokens are, not how likely the policy's are: "
            "give --opd-top-k-strategy only-teacher, or take a folder",
        ),
        (
            algorithm.keep_old_actor and (algorithm.use_rollout_logprobs or algorithm.use_approximate_old_logprobs),
            "--keep-old-actor computes old logprobs, which --use-rollout-logprobs and --use-approximate-old-logprobs "
            "do not need: give one of them",
        ),
    ]


def shaping(rollouts: Rollouts, rewards: Rewards, algorithm: Algorithm) -> Rules:
    """What is taken from rewards before advantages."""
    buffer, longest = rewards.overlong_buffer_len or 0, rollouts.rollout_max_response_len
    name, estimator = algorithm.advantage_estimator, algorithm.estimator
    return [
        (
            buffer > longest,
            f"--overlong-buffer-len {buffer} is above --rollout-max-response-len {longest}, of which it is the end",
        ),
        (
            buffer > 0 and estimator.least_reward is not None,
            f"--overlong-buffer-len takes from rewards, and --advantage-estimator {name} takes none below "
            f"{estimator.least_reward}: leave it out, or take grpo",
        ),
        (
            buffer > 0 and estimator.ignores_reward,
            f"--overlong-buffer-len takes from a rollout's reward, and --advantage-estimator {name} does not look at "
            "it: leave it out, or take grpo",
        ),
    ]


def too_low(rewards: Rewards, rules: Sequence[Chosen], algorithm: Algorithm) -> bool:
    """Whether these rules give rewards that mean nothing to the estimator, as far as that is known."""
    least, given = algorithm.estimator.least_reward, rewards.least(rules)
    earned = algorithm.custom_reward_post_process_path is None
    return earned and least is not None and given is not None and given < least


def too_low_words(source: str, algorithm: Algorithm) -> str:
    """What is wrong with the rewards of `source`."""
    return (
        f"{source} gives rewards below {algorithm.estimator.least_reward}, and --advantage-estimator "
        f"{algorithm.advantage_estimator} takes none: take another rule, or grpo"
    )


def advantages(rollouts: Rollouts, algorithm: Algorithm) -> Rules:
    """What an estimator needs."""
    name, estimator = algorithm.advantage_estimator, algorithm.estimator
    return [
        (
            rollouts.n_samples_per_prompt < estimator.least and not algorithm.imitates,
            f"--advantage-estimator {name} compares rollouts of one prompt: take --n-samples-per-prompt "
            f"{estimator.least} or more",
        ),
        (
            algorithm.disable_rewards_normalization
            and name in ADVANTAGES
            and "disable_rewards_normalization" not in estimator.flags,
            f"--disable-rewards-normalization: {name} has no such choice; leave it out, or take grpo",
        ),
    ]
