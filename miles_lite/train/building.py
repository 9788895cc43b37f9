"""What the options make of a rank: its policy, whom it is compared with and taught by, how they are spread.

Invariant: all of it is collective.
"""

from __future__ import annotations

import torch

from miles_lite.config.options import Config
from miles_lite.config.teachers import is_url
from miles_lite.config.training import Algorithm
from miles_lite.train.adapters import WithoutAdapters
from miles_lite.train.data import Replicated, Sharded, Strategy
from miles_lite.train.learner import Learner
from miles_lite.train.mesh import make_mesh
from miles_lite.train.policy import Policy
from miles_lite.train.served_teacher import ServedTeacher
from miles_lite.train.value import ValuedPolicy


def build_learner(config: Config, *, device: torch.device) -> Learner:
    """Policy, reference and optimizer on one device; the process group must exist. Collective."""
    algorithm, rollouts = config.algorithm, config.rollouts
    strategy = build_strategy(config, device=device)
    lora = config.lora if config.lora.lora_rank else None
    kind = ValuedPolicy if algorithm.estimator.critic else Policy
    policy = strategy.load(config.model.hf_checkpoint, kind, lora=lora)
    reference: Policy | None = None
    if algorithm.compares and lora is not None and config.checkpoint.ref_load is None:
        reference = WithoutAdapters(policy)
    elif algorithm.compares:
        reference = strategy.load(config.checkpoint.ref_load or config.model.hf_checkpoint)
        reference.requires_grad_(False)
    updates_per_rollout = rollouts.rollout_batch_size * rollouts.n_samples_per_prompt // config.global_batch_size
    return Learner(
        policy=policy,
        reference=reference,
        strategy=strategy,
        device=device,
        algorithm=algorithm,
        options=config.optimizer,
        teachers={name: build_teacher(where, strategy, algorithm) for name, where in algorithm.teachers.items()},
        total_updates=None if rollouts.num_rollout is None else rollouts.num_rollout * updates_per_rollout,
    )


def build_teacher(where: str, strategy: Strategy, algorithm: Algorithm) -> Policy | ServedTeacher:
    """Who --opd-teacher names: run by these ranks, or served by others. Collective."""
    if is_url(where):
        return ServedTeacher(where, likeliest=algorithm.opd_log_prob_top_k)
    return strategy.load(where).requires_grad_(False)


def build_strategy(config: Config, *, device: torch.device) -> Strategy:
    """What --data-parallel-sharding-strategy says. Collective."""
    sizes, compute = config.parallelism, config.compute
    alone = device.type == "cpu" and not sizes.shares_layers
    if alone and sizes.data_parallel_sharding_strategy != "optim_grads_params":
        return Replicated(compute)
    return Sharded(make_mesh(sizes, device=device), device, compute)
