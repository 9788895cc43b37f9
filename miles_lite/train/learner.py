"""One rank's part in training: batches in, updated parameters and metrics out. No Ray in here.

Invariant: the loss of a step is Σ over components, and over their tokens, of share x token loss, summed over all ranks
(`shares`, `losses.objective`). Old logprobs are those before the first update of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.traces.token_values import TokenValues
from miles_lite.train.batching import Batch
from miles_lite.train.credit import advantages, penalised
from miles_lite.train.data import Strategy, trainable
from miles_lite.train.gaps import LARGEST, MEANS, gaps
from miles_lite.train.gaps import SUMS as GAPS
from miles_lite.train.gaps import report as gap_report
from miles_lite.train.learning_rate import learning_rate
from miles_lite.train.loading import vocabulary
from miles_lite.train.losses.objective import Terms, distillation, imitation, metric_names, objective, refuse_taken
from miles_lite.train.packing import check, forward_passes, idle_pass
from miles_lite.train.passes import Pass
from miles_lite.train.phases import PHASES, Clock
from miles_lite.train.policy import Policy, choose_form, replayed
from miles_lite.train.recompute import Recompute
from miles_lite.train.routing_replay import COUNTS
from miles_lite.train.served_teacher import ServedTeacher
from miles_lite.train.shares import imitated_tokens, share_out
from miles_lite.train.tally import Tally
from miles_lite.train.token_record import TokenRecord
from miles_lite.train.utilisation import SUMS as WORK
from miles_lite.train.utilisation import Meter, peak_memory
from miles_lite.train.value import value_loss

PASS_TOKENS = {"cpu": 2048, "cuda": 1 << 62}
"""Largest forward pass in computed tokens: on a CPU what stays in its caches; on CUDA the micro-batch is the limit."""

BESIDE = (*GAPS, "ess_ratio", "sequences", *COUNTS, *WORK)
"""Sums that are not of the loss."""
MAXIMA = (LARGEST, *PHASES, "memory")
PUBLISHED = (*MEANS, "grad_norm", "lr", "step")
"""What is made of them, under `train/`, by other names."""
CRITIC = ("value_loss", "value_clipfrac")


@dataclass
class Learner:
    """A policy as its strategy loaded it, with its optimizer. `updates` counts optimizer steps since the run began."""

    policy: Policy
    strategy: Strategy
    device: torch.device
    algorithm: Algorithm
    options: Optimizer
    reference: Policy | None = None
    total_updates: int | None = None
    updates: int = 0
    teachers: Mapping[str, Policy | ServedTeacher] = field(default_factory=dict)
    optimizer: torch.optim.AdamW = field(init=False)
    token_values: list[TokenValues] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        self._meter = Meter(self.policy.model, self.device, tile=self.policy.tile)
        self._asked = Recompute(
            self.policy, self.reference, self.teachers, self.algorithm, self.device, clock=self.clock
        )
        self._vocabulary = vocabulary(self.policy.model.config)
        self._form = choose_form([self.policy, *self._asked.others], trees=not self.algorithm.disable_tree_training)
        self._routing = replayed(self.policy, self.device, self.algorithm)
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
        custom = "--loss-type, --custom-tis-function-path"
        refuse_taken(self._per_loss, (*BESIDE, *MAXIMA, *PUBLISHED, *CRITIC), where=custom)
        if self.algorithm.estimator.critic:
            self._per_loss += CRITIC

    def train(self, batch: Batch[Sample]) -> dict[str, float]:
        """All optimizer steps of one batch; collective. Metrics (`train/…`, `perf/…`) are equal on all ranks. From then
        on `token_values` are of this batch.

        Raises ValueError for a batch that breaks its contract, UserError for a gradient that is not finite.
        """
        tally, self._record = self._tally(), TokenRecord(batch)
        steps = self._prepare(check(batch, vocabulary=self._vocabulary))
        self._asked.fill(steps, self.strategy.mesh)
        with self.clock("actor_train"):
            norms = [self._step(passes, tally, first=number == 0) for number, passes in enumerate(steps)]
        tally.add({"tokens": float(sum(len(sample) for sample in batch.samples))})
        tally.add(self._meter.work(each.packed for passes in steps for each in passes))
        for name, seconds in self.clock.lap().items():
            tally.top(name, seconds)
        tally.top("memory", peak_memory(self.device))
        self.token_values = self._record.values()
        return self._report(tally.reduce(self.strategy.mesh), norms=norms)

    def _prepare(self, batch: Batch[Sample]) -> list[list[Pass]]:
        """Per optimizer step, its forward passes; as many on every rank as the strategy asks for."""
        limit, form, routing = PASS_TOKENS[self.device.type], self._form, self._routing
        imitated = self.strategy.mesh.sum_samples(torch.tensor(imitated_tokens(batch, self.algorithm))).tolist()
        taught = self._asked.teacher_scores(batch)
        with self.clock("data_preprocess"):
            shares = share_out(batch, self.algorithm, imitated=imitated, taught=taught)
            steps = [
                [
                    packed.to(self.device)
                    for micro_batch in micro_batches
                    for packed in forward_passes(
                        batch, micro_batch, shares=shares, limit=limit, form=form, routing=routing
                    )
                ]
                for micro_batches in batch.steps
            ]
        rounds = self.strategy.rounds([len(step) for step in steps])
        idle = idle_pass(batch).to(self.device)
        return [
            [Pass(packed) for packed in [*step, *[idle] * (count - len(step))]]
            for step, count in zip(steps, rounds, strict=True)
        ]

    def _step(self, passes: list[Pass], tally: Tally, *, first: bool) -> float:
        """One optimizer step; the gradient's global norm before clipping."""
        self.strategy.zero_grad(self.policy)
        with self.clock("forward_backward"):
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
        with self.clock("optimizer"):
            self.optimizer.step()
        self.updates += 1
        return norm

    def _loss(self, each: Pass, tally: Tally, *, first: bool) -> Tensor:
        """The pass's share of the step's loss; its metrics go into the tally."""
        packed, algorithm = each.packed, self.algorithm
        scores = self.policy(each.scored, entropy_gradient=algorithm.entropy_coef != 0)
        tokens = len(packed.samples)
        new, entropy, *values = (score[:tokens] for score in scores)
        top = None if each.top_ids is None else scores[0][tokens:].view(each.top_ids.shape)
        old = each.old_logprobs(new, algorithm)
        if each.advantages is None and penalised(algorithm):
            each.advantages, _ = advantages(each, old, algorithm)
        tally.add(self.policy.routes())
        streams = each.streams(new, entropy, old, top)
        policy, shares = streams, packed.weights
        parts: list[tuple[Terms, Tensor]] = []
        if algorithm.echo_coef:
            mine, told = packed.weights > 0, packed.imitation > 0
            policy, shares = streams.at(mine), packed.weights[mine]
            parts.append((imitation(streams.at(told), algorithm), packed.imitation[told]))
        parts.append((objective(policy, algorithm), shares))
        if policy.teacher is not None:
            parts.append((distillation(policy, algorithm), shares))
        if values and each.values is not None and each.returns is not None:
            parts.append((value_loss(values[0], each.values, each.returns, algorithm), packed.weights))
        loss = self._add_up(parts, tally)
        if not self._rolled_out:
            return loss
        ess = policy.sequences.effective_ratio(policy.logratio)
        tally.add({"ess_ratio": ess.sum(), "sequences": float(packed.sequences)})
        before_update = new.detach() if first else each.old
        known = new.detach() if before_update is None else before_update
        self._record.record(packed, logprobs=known, advantages=streams.advantages)
        if before_update is not None:
            sums, largest = gaps(packed, before_update)
            tally.add(sums)
            tally.top(LARGEST, largest)
        return loss

    def _add_up(self, parts: list[tuple[Terms, Tensor]], tally: Tally) -> Tensor:
        """The components' terms, reduced by the shares of their tokens; their losses added up."""
        losses = []
        for terms, shares in parts:
            reduced = {name: term @ shares for name, term in terms.items()}
            losses.append(reduced["loss"])
            tally.add({name: term.detach() for name, term in reduced.items()})
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @property
    def _rolled_out(self) -> bool:
        """Whether engines sampled the tokens, so that their logprobs can be compared."""
        return not self.algorithm.imitates

    def _tally(self) -> Tally:
        return Tally(sums=[*self._per_loss, *BESIDE], maxima=MAXIMA)

    def _report(self, totals: dict[str, float], *, norms: list[float]) -> dict[str, float]:
        """Means over steps, tokens or sequences, under their published names."""
        steps = max(1, len(norms))
        report = {f"train/{name}": totals[name] / steps for name in self._per_loss}
        if self._rolled_out:
            report |= gap_report(totals)
            report["train/ess_ratio"] = totals["ess_ratio"] / max(1.0, totals["sequences"])
        if self._routing is not None:
            known, missing = totals["routes_replayed"], totals["routes_missing"]
            report["train/routes_differ"] = totals["routes_differ"] / max(1.0, known)
            report["train/routes_missing"] = missing / max(1.0, known + missing)
        report["train/grad_norm"] = sum(norms) / steps
        report["train/lr"] = float(self.optimizer.param_groups[0]["lr"])
        report |= {f"perf/{phase}_time": totals[phase] for phase in PHASES if totals[phase]}
        return report | self._meter.report(totals, seconds=totals["actor_train"], memory=totals["memory"])
