"""What the options of a run cannot be together.

Invariant: what a number may be stands at its option (`least`, `above`, ...); here stands what options cannot be
together, and the few bounds that need words of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_lite.errors import UserError

if TYPE_CHECKING:
    from miles_lite.config.options import Config, Engines, Topology

Rules = list[tuple[bool, str]]
"""Whether a rule is broken, and the words that say so."""


def refuse_broken(rules: Rules) -> None:
    """Raises UserError with the words of the first rule that is broken."""
    for broken, message in rules:
        if broken:
            raise UserError(message)


def contradictions(config: Config) -> Rules:
    """All rules between the options of a run."""
    return [
        *_length(config),
        *_batches(config),
        *_losses(config),
        *_sampling(config),
        *_folders(config),
        *engine_rules(config.topology, config.engines),
    ]


def _length(config: Config) -> Rules:
    """How long a run is, and its learning rate on the way."""
    roll, optimizer = config.rollouts, config.optimizer
    decay = optimizer.lr_decay_style
    return [
        (
            roll.num_rollout is None and roll.num_epoch is None,
            "give --num-rollout or --num-epoch: how long to train",
        ),
        (
            roll.num_rollout is None and decay != "constant",
            f"--lr-decay-style {decay} needs --num-rollout: where decay ends",
        ),
        (
            optimizer.min_lr > optimizer.lr,
            f"--min-lr {optimizer.min_lr} is above --lr {optimizer.lr}",
        ),
    ]


def _batches(config: Config) -> Rules:
    """What makes up an optimizer step."""
    roll, algo = config.rollouts, config.algorithm
    total = roll.rollout_batch_size * roll.n_samples_per_prompt
    product = f"{total} rollouts (batch size x samples per prompt)"
    steps, batch, over = algo.num_steps_per_rollout, config.global_batch_size, roll.over_sampling_batch_size
    return [
        (
            over is not None and over < roll.rollout_batch_size,
            f"--over-sampling-batch-size {over} is below --rollout-batch-size {roll.rollout_batch_size}",
        ),
        (
            batch < 1 or total % batch != 0 or (steps is not None and batch * steps != total),
            f"--global-batch-size {batch} or --num-steps-per-rollout {steps} does not divide {product}",
        ),
        (
            steps is not None and algo.global_batch_size not in (None, batch),
            "--global-batch-size contradicts --num-steps-per-rollout: give one of them",
        ),
        (
            algo.use_dynamic_batch_size and algo.max_tokens_per_gpu is None,
            "--use-dynamic-batch-size needs --max-tokens-per-gpu",
        ),
    ]


def _losses(config: Config) -> Rules:
    """What the losses need, and what excludes what."""
    roll, algo, evaluation = config.rollouts, config.algorithm, config.evaluation
    return [
        (
            algo.use_rollout_logprobs and algo.use_tis,
            "--use-rollout-logprobs and --use-tis exclude each other: with the engine's logprobs nothing is left "
            "to correct",
        ),
        (
            algo.loss_type == "sft_loss" and (roll.n_samples_per_prompt != 1 or evaluation.eval_interval is not None),
            "--loss-type sft_loss runs no engines: take --n-samples-per-prompt 1 and no --eval-interval",
        ),
        (
            algo.loss_type == "sft_loss" and (algo.use_tis or algo.use_rollout_logprobs),
            "--loss-type sft_loss has no rollouts whose logprobs --use-tis or --use-rollout-logprobs could take",
        ),
        (
            algo.kl_loss_coef > 0 and not algo.use_kl_loss,
            f"--kl-loss-coef {algo.kl_loss_coef} needs --use-kl-loss: without it there is no KL loss",
        ),
        (
            algo.tis_clip_low > algo.tis_clip,
            f"--tis-clip-low {algo.tis_clip_low} is above --tis-clip {algo.tis_clip}",
        ),
    ]


def _sampling(config: Config) -> Rules:
    """How rollouts are sampled and rewarded, and what sessions take."""
    roll, roles = config.rollouts, {"tool", "user", "system", "assistant"}
    return [
        (roll.rollout_top_k == 0, "--rollout-top-k 0: give -1 (off) or at least 1"),
        (
            roll.rm_type is not None and roll.custom_rm_path is not None,
            "--rm-type and --custom-rm-path exclude each other: one of them gives the reward",
        ),
        (
            roll.rm_type in ("exact_match", "contains") and config.data.label_key is None,
            f"--rm-type {roll.rm_type} needs --label-key: what responses are compared with",
        ),
        (
            roll.rollout_temperature <= 0,
            "--rollout-temperature must be above 0: greedy tokens have no policy gradient",
        ),
        (
            not roles.issuperset(config.session.tito_allowed_append_roles),
            "--tito-allowed-append-roles: only tool, user, system and assistant exist",
        ),
    ]


def _folders(config: Config) -> Rules:
    """What is saved and evaluated."""
    checkpoint, evaluation = config.checkpoint, config.evaluation
    names = evaluation.eval_prompt_data[::2]
    return [
        (
            checkpoint.save_interval is not None and checkpoint.save is None,
            "--save-interval needs --save",
        ),
        (
            checkpoint.save_hf is not None and checkpoint.save is None,
            "--save-hf needs --save: it is written with each checkpoint",
        ),
        (len(evaluation.eval_prompt_data) % 2 != 0, "--eval-prompt-data takes pairs: NAME PATH [NAME PATH ...]"),
        (len(set(names)) < len(names), "--eval-prompt-data: a name is there twice; give each file another name"),
        (
            evaluation.eval_interval is not None and not evaluation.eval_prompt_data,
            "--eval-interval needs --eval-prompt-data",
        ),
    ]


def engine_rules(topology: Topology, engines: Engines) -> Rules:
    """What the engines of a run, or of a command that only serves, cannot be."""
    size, prefill = topology.rollout_num_gpus_per_engine, engines.prefill_num_servers
    return [
        (
            engines.sglang_router_ip is not None and engines.sglang_router_port is None,
            "--sglang-router-ip needs --sglang-router-port: where that router runs",
        ),
        (
            topology.rollout_slots % size != 0,
            f"--rollout-num-gpus {topology.rollout_slots} is not a multiple of --rollout-num-gpus-per-engine {size}",
        ),
        (
            prefill >= max(topology.num_engines, 1),
            f"--prefill-num-servers {prefill}: of {topology.num_engines} engines at least one must be left to decode",
        ),
        (
            engines.router == "gateway" and (prefill > 0 or engines.sglang_router_ip is not None),
            "--router gateway: not with --prefill-num-servers, whose replies the gateway does not merge without "
            "loss, nor with --sglang-router-ip, where another router runs already",
        ),
    ]
