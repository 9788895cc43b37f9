"""Why the trainer's logprobs differ from those that engines gave the same tokens.

Invariant: a trained token has one cause, the first that fits; so shares add up to 1, and share x mean over the causes
to the mean over all trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from miles_lite.config.choices import KLType
from miles_lite.train.losses.terms import kl_estimate
from miles_lite.train.packing import Packed

CAUSES = ("off_context", "staleness", "routes", "numerics")
"""The engine sampled the token behind other ids; with weights before those that are trained; its experts are replayed,
and are not known of some token of its context; none of these: the same tokens, weights and experts, computed twice."""

IN_CONTEXT = CAUSES[1:]
SUMS = ("train_rollout_kl", *(f"{what}_{cause}" for cause in CAUSES for what in ("gap", "tokens")))
LARGEST = "train_rollout_logprob_abs_diff_max"
MEANS = ("train_rollout_logprob_abs_diff", *(f"logprob_gap/{cause}{of}" for cause in CAUSES for of in ("", "_share")))
"""What `report` makes of SUMS by names of its own."""


def gaps(packed: Packed, trainer: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Sums over a pass's trained tokens, by SUMS, and the largest gap (0 of no token); `trainer`: what the policy says
    of its N tokens, float32. The KL divergence and the largest gap are of tokens whose context is the engine's."""
    trained = packed.weights > 0
    said, heard = trainer[trained], packed.rollout_logprobs[trained]
    gap, within = (said - heard).abs(), packed.in_context[trained]
    causes = torch.full(gap.shape, CAUSES.index("numerics"), device=gap.device)
    causes[packed.unrouted[trained]] = CAUSES.index("routes")
    causes[packed.staleness[trained] > 0] = CAUSES.index("staleness")
    causes[~within] = CAUSES.index("off_context")
    hot = one_hot(causes, len(CAUSES)).to(gap.dtype)
    sums = {f"gap_{cause}": total for cause, total in zip(CAUSES, gap @ hot, strict=True)}
    sums |= {f"tokens_{cause}": count for cause, count in zip(CAUSES, hot.sum(0), strict=True)}
    sums["train_rollout_kl"] = kl_estimate(heard[within], said[within], kind=KLType.LOW_VAR).sum()
    return sums, torch.cat([gap[within], gap.new_zeros(1)]).max()


def report(totals: Mapping[str, float]) -> dict[str, float]:
    """Means of what `gaps` summed: of all tokens within their context, and by cause; of no tokens there is none."""
    within = max(1.0, sum(totals[f"tokens_{cause}"] for cause in IN_CONTEXT))
    trained = max(1.0, sum(totals[f"tokens_{cause}"] for cause in CAUSES))
    means = {
        "train/train_rollout_logprob_abs_diff": sum(totals[f"gap_{cause}"] for cause in IN_CONTEXT) / within,
        "train/train_rollout_kl": totals["train_rollout_kl"] / within,
        f"train/{LARGEST}": totals[LARGEST],
    }
    for cause in CAUSES:
        tokens = totals[f"tokens_{cause}"]
        means[f"train/logprob_gap/{cause}_share"] = tokens / trained
        if tokens:
            means[f"train/logprob_gap/{cause}"] = totals[f"gap_{cause}"] / tokens
    return means
