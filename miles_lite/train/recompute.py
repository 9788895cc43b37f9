"""What other models, and the policy before its first update, say of a batch: filled into its passes.

Invariant: everybody sees the very passes of the update, so that what they say differs from it by nothing but weights;
every rank asks each model about as many passes. Models that are not trained rest in host memory between batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.train.batching import Batch
from miles_lite.train.credit import early, penalised, settle
from miles_lite.train.data import Sums
from miles_lite.train.passes import Pass
from miles_lite.train.phases import Clock
from miles_lite.train.policy import Policy
from miles_lite.train.resting import awake, rest, restore, snapshot
from miles_lite.train.served_teacher import ServedTeacher, TeacherScores


@dataclass
class Recompute:
    """The policy that is trained, and who else is asked. `_previous`: its weights before the last batch."""

    policy: Policy
    reference: Policy | None
    teachers: Mapping[str, Policy | ServedTeacher]
    algorithm: Algorithm
    device: torch.device
    clock: Clock
    _previous: list[Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._moves = next(self.policy.parameters()).device.type == "cuda"
        for policy in self.others if self._moves else ():
            rest(policy)

    @property
    def others(self) -> list[Policy]:
        """The models on this rank that are not trained."""
        folders = [each for each in self.teachers.values() if isinstance(each, Policy)]
        return [*folders, *([] if self.reference is None else [self.reference])]

    def teacher_scores(self, batch: Batch[Sample]) -> dict[int, TeacherScores]:
        """What served teachers say of their samples, by index. Raises UserError."""
        alone, unknown = len(self.teachers) == 1, set(batch.teachers) - set(self.teachers)
        if unknown and len(self.teachers) > 1:
            raise UserError(
                f"--opd-teacher-key {self.algorithm.opd_teacher_key}: a prompt has {sorted(unknown)[0]!r} there, and "
                f"--opd-teacher knows {', '.join(self.teachers)}"
            )
        said: dict[int, TeacherScores] = {}
        for name, teacher in self.teachers.items():
            if isinstance(teacher, ServedTeacher):
                mine = [index for index, each in enumerate(batch.teachers) if alone or each == name]
                with self.clock("teacher_log_probs"):
                    said |= zip(mine, teacher.logprobs([batch.samples[index] for index in mine]), strict=True)
        return said

    @torch.no_grad()
    def fill(self, steps: Sequence[Sequence[Pass]], ranks: Sums) -> None:
        """Old, reference and teachers' logprobs, values, advantages: all that is known before the first update."""
        passes = [each for step in steps for each in step]
        with self.clock("log_probs"):
            self._ask_itself(steps, stale=self._stale(passes, ranks))
        if self.reference is not None:
            with self.clock("ref_log_probs"), awake(self.reference, self.device, moves=self._moves) as reference:
                for each in passes:
                    each.reference = reference(each.packed)[0]
        if self.teachers:
            with self.clock("teacher_log_probs"):
                self._ask_teachers(passes)
        if early(self.algorithm):
            settle(passes, self.algorithm, ranks)

    def _ask_teachers(self, passes: Sequence[Pass]) -> None:
        """Each about all passes, so that ranks ask as often; what it says is kept of the tokens it teaches."""
        for each in passes:
            each.teacher = each.packed.teacher_logprobs
            if count := self.algorithm.opd_log_prob_top_k:
                each.top_ids = each.packed.teacher_top_ids.view(-1, count)
                each.top_teacher = each.packed.teacher_top_logprobs.view(-1, count)
        for number, teacher in enumerate(self.teachers.values()):
            if isinstance(teacher, Policy):
                with awake(teacher, self.device, moves=self._moves):
                    for each in passes:
                        self._ask_teacher(each, teacher, each.packed.teacher == number)

    def _ask_teacher(self, each: Pass, teacher: Policy, mine: Tensor) -> None:
        """About the tokens that it teaches, bool [N], and as many likeliest ones in the place of each as are wanted."""
        assert each.teacher is not None
        count, tokens = self.algorithm.opd_log_prob_top_k, len(mine)
        if not count:
            each.teacher = torch.where(mine, teacher(each.packed)[0], each.teacher)
            return
        judge = teacher if self.algorithm.opd_top_k_strategy == "only-teacher" else self.policy
        ids = torch.stack(judge(each.packed, likeliest=count), dim=1)
        said = teacher(each.packed.scoring(ids))[0]
        assert each.top_ids is not None
        assert each.top_teacher is not None
        each.top_ids = torch.where(mine[:, None], ids, each.top_ids)
        each.top_teacher = torch.where(mine[:, None], said[tokens:].view(tokens, count), each.top_teacher)
        each.teacher = torch.where(mine, said[:tokens], each.teacher)

    def _ask_itself(self, steps: Sequence[Sequence[Pass]], *, stale: bool) -> None:
        """The first step's own forward passes are still those of the old policy, so only later steps are computed here,
        unless advantages depend on what it says, or other weights sampled: with one step per batch, nothing is."""
        algorithm = self.algorithm
        told = algorithm.use_rollout_logprobs or algorithm.use_approximate_old_logprobs
        first = stale or (early(algorithm) and (penalised(algorithm) or algorithm.estimator.critic))
        for number, step in enumerate(steps):
            for each in step:
                if first or (number > 0 and not told):
                    each.old, _, *values = self.policy(each.packed)
                    each.values = values[0] if values else None
        if algorithm.keep_old_actor:
            self._ask_previous(steps, stale=stale)

    def _ask_previous(self, steps: Sequence[Sequence[Pass]], *, stale: bool) -> None:
        """About the tokens that the weights before these sampled; then these are kept."""
        current = snapshot(self.policy)
        if stale and self._previous is not None:
            restore(self.policy, self._previous)
            for each in (each for step in steps for each in step):
                before = self.policy(each.packed)[0]
                each.old = before if each.old is None else torch.where(each.packed.staleness > 0, before, each.old)
            restore(self.policy, current)
        self._previous = current

    def _stale(self, passes: Sequence[Pass], ranks: Sums) -> bool:
        """Whether, on any rank, the weights before these sampled a token, and are kept."""
        if not self.algorithm.keep_old_actor:
            return False
        some = any(bool((each.packed.staleness > 0).any()) for each in passes)
        return bool(ranks.most(torch.tensor([some], dtype=torch.int64))) and self._previous is not None
