"""One rank's part in training: batches in, updated parameters and metrics out. No Ray in here.

Invariant: the loss of a step is Σ over trained tokens of weight x token loss, summed over all ranks, where weight is
1 / (trained tokens of the rollout x rollouts of the step), or 1 / trained tokens of the step with
`calculate_per_token_loss`. Old logprobs are those before the first update of the batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from miles_lite.config.choices import KLType, LossType
from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.train.batching import Batch
from miles_lite.train.learning_rate import learning_rate
from miles_lite.train.losses.objective import metric_names, objective
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import effective_sample_ratio, kl_estimate
from miles_lite.train.packing import Packed, check, forward_passes, idle_pass
from miles_lite.train.parallel import Strategy, all_reduce, trainable
from miles_lite.train.policy import Policy, choose_form
from miles_lite.train.tally import Tally

PASS_TOKENS = {"cpu": 2048, "cuda": 1 << 62}
"""Largest forward pass in computed tokens: on a CPU what stays in its caches; on CUDA the micro-batch is the limit."""

PER_TOKEN = ("train_rollout_logprob_abs_diff", "train_rollout_kl")


@dataclass
class Pass:
    """A forward pass and what is known of its tokens before the first update, each float32 [N]."""

    packed: Packed
    old: Tensor | None = None
    reference: Tensor | None = None


@dataclass
class Learner:
    """A policy with its optimizer. `updates` counts optimizer steps since the run began."""

    policy: Policy
    strategy: Strategy
    device: torch.device
    algorithm: Algorithm
    options: Optimizer
    reference: Policy | None = None
    total_updates: int | None = None
    updates: int = 0
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        policies = [policy for policy in (self.policy, self.reference) if policy is not None]
        self._form = choose_form(policies, trees=not self.algorithm.disable_tree_training)
        for policy in policies:
            policy.to(self.device)
            self.strategy.wrap(policy)
        options = self.options
        self.optimizer = torch.optim.AdamW(
            trainable(self.policy),
            lr=options.lr,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self._per_loss = metric_names(self.algorithm, reference=self.reference is not None)

    def train(self, batch: Batch[Sample]) -> dict[str, float]:
        """All optimizer steps of one batch; collective. Metrics (`train/…`, `perf/…`) are equal on all ranks.

        Raises ValueError for a batch that breaks its contract, UserError for a gradient that is not finite.
        """
        tally = self._tally()
        steps = self._prepare(check(batch))
        begin = time.perf_counter()
        self._recompute(steps)
        middle = time.perf_counter()
        norms = [self._step(passes, tally, first=number == 0) for number, passes in enumerate(steps)]
        end = time.perf_counter()
        tally.add({"tokens": float(sum(len(sample) for sample in batch.samples))})
        tally.top("log_probs_time", middle - begin)
        tally.top("actor_train_time", end - middle)
        return self._report(tally.reduce(), norms=norms)

    def _prepare(self, batch: Batch[Sample]) -> list[list[Pass]]:
        """Per optimizer step, its forward passes; as many on every rank as the strategy asks for."""
        limit = PASS_TOKENS[self.device.type]
        steps = [
            [
                packed.to(self.device)
                for micro_batch in micro_batches
                for packed in forward_passes(
                    batch, micro_batch, denominators=denominators, limit=limit, form=self._form
                )
            ]
            for micro_batches, denominators in zip(batch.steps, self._denominators(batch), strict=True)
        ]
        rounds = self.strategy.rounds([len(step) for step in steps])
        idle = idle_pass(batch).to(self.device)
        return [
            [Pass(packed) for packed in [*step, *[idle] * (count - len(step))]]
            for step, count in zip(steps, rounds, strict=True)
        ]

    def _denominators(self, batch: Batch[Sample]) -> list[np.ndarray]:
        """Per optimizer step, float64 [samples]: what the loss of a sample's tokens is divided by."""
        if not self.algorithm.calculate_per_token_loss:
            per_rollout = np.maximum(batch.rollout_tokens.astype(np.float64), 1.0)
            return [per_rollout * rollouts for rollouts in batch.rollouts_per_step]
        trained = [
            sum(batch.samples[index].trained_tokens for micro_batch in step for index in micro_batch)
            for step in batch.steps
        ]
        totals = all_reduce(torch.tensor(trained, dtype=torch.float64)).clamp_min(1.0)
        return [np.full(len(batch.samples), float(total)) for total in totals]

    def _recompute(self, steps: list[list[Pass]]) -> None:
        """Fill in old and reference logprobs, all before the first update.

        The first step's own forward passes are still those of the old policy, so only later steps are computed here:
        with one step per batch, nothing is.
        """
        with torch.no_grad():
            for number, step in enumerate(steps):
                for each in step:
                    if self.algorithm.use_rollout_logprobs:
                        each.old = each.packed.rollout_logprobs
                    elif number > 0:
                        each.old = self.policy(each.packed)[0]
                    if self.reference is not None:
                        each.reference = self.reference(each.packed)[0]

    def _step(self, passes: list[Pass], tally: Tally, *, first: bool) -> float:
        """One optimizer step; the gradient's global norm before clipping."""
        self.strategy.zero_grad(self.policy)
        for each in passes:
            torch.autograd.backward(self._loss(each, tally, first=first))
        norm = self.strategy.finish_gradients(self.policy, max_norm=self.options.clip_grad)
        if not np.isfinite(norm):
            raise UserError(
                f"the gradient norm is {norm} at update {self.updates}: nothing was changed. Lower --lr, or set "
                "--clip-grad, and continue from the last checkpoint with --load"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.updates, self.options, total=self.total_updates)
        self.optimizer.step()
        self.updates += 1
        return norm

    def _loss(self, each: Pass, tally: Tally, *, first: bool) -> Tensor:
        """The pass's share of the step's loss; its metrics go into the tally."""
        packed, algorithm = each.packed, self.algorithm
        new, entropy = self.policy(packed, entropy_gradient=algorithm.entropy_coef != 0)
        before_update = new.detach() if first else each.old
        old = new.detach() if each.old is None else each.old
        streams = Streams(
            new=new,
            entropy=entropy,
            old=torch.where(packed.in_context, old, new.detach()) if algorithm.use_rollout_logprobs else old,
            reference=each.reference,
            rollout_logprobs=packed.rollout_logprobs,
            in_context=packed.in_context,
            advantages=packed.advantages,
        )
        reduced = {name: term @ packed.weights for name, term in objective(streams, algorithm).items()}
        tally.add({name: term.detach() for name, term in reduced.items()})
        ess = effective_sample_ratio(streams.logratio, packed.samples, count=packed.sequences)
        tally.add({"ess_ratio": ess.sum(), "sequences": float(packed.sequences)})
        if self._rolled_out and before_update is not None and (first or not algorithm.use_rollout_logprobs):
            comparable = packed.in_context
            self._tally_gap(tally, before_update[comparable], packed.rollout_logprobs[comparable])
        return reduced["loss"]

    def _tally_gap(self, tally: Tally, trainer: Tensor, rollout: Tensor) -> None:
        """How far the trainer's logprobs are from the engine's for the same weights."""
        gap = (trainer - rollout).abs()
        kl = kl_estimate(rollout, trainer, kind=KLType.LOW_VAR)
        tally.add({"train_rollout_logprob_abs_diff": gap.sum(), "train_rollout_kl": kl.sum(), "gaps": float(len(gap))})
        if len(gap):
            tally.top("train_rollout_logprob_abs_diff_max", gap.max())

    @property
    def _rolled_out(self) -> bool:
        """Whether engines sampled the tokens, so that their logprobs can be compared."""
        return self.algorithm.loss_type is not LossType.SFT

    def _tally(self) -> Tally:
        return Tally(
            sums=[*self._per_loss, *PER_TOKEN, "gaps", "ess_ratio", "sequences", "tokens"],
            maxima=["train_rollout_logprob_abs_diff_max", "log_probs_time", "actor_train_time"],
        )

    def _report(self, totals: dict[str, float], *, norms: list[float]) -> dict[str, float]:
        """Means over steps, tokens or sequences, under their published names."""
        steps = max(1, len(norms))
        report = {f"train/{name}": totals[name] / steps for name in self._per_loss}
        if self._rolled_out:
            report |= {f"train/{name}": totals[name] / max(1.0, totals["gaps"]) for name in PER_TOKEN}
            report["train/train_rollout_logprob_abs_diff_max"] = totals["train_rollout_logprob_abs_diff_max"]
        report["train/ess_ratio"] = totals["ess_ratio"] / max(1.0, totals["sequences"])
        report["train/grad_norm"] = sum(norms) / steps
        report["train/lr"] = float(self.optimizer.param_groups[0]["lr"])
        report["perf/log_probs_time"] = totals["log_probs_time"]
        report["perf/actor_train_time"] = totals["actor_train_time"]
        report["perf/actor_train_tok_per_s"] = totals["tokens"] / max(totals["actor_train_time"], 1e-9)
        return report
