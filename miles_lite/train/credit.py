"""Advantages of tokens: what the estimator makes of a pass, penalties included, and whitening over the whole batch.

Invariant: without gradient; before the first update where an advantage depends on more than its own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor

from miles_lite.config.training import Algorithm
from miles_lite.process.user_code import load_named
from miles_lite.train.advantages.tokens import Credit, TokenAdvantages
from miles_lite.train.data import Sums
from miles_lite.train.losses.terms import kl_estimate
from miles_lite.train.passes import Pass

SMALL = 1e-8
"""Added to a variance."""


@cache
def load_tokens(path: str) -> TokenAdvantages:
    """The tokens' stage at that import path."""
    return cast(TokenAdvantages, load_named(path, given_as="--advantage-estimator"))


def early(options: Algorithm) -> bool:
    """Whether advantages must be known before the first pass of the first step."""
    return options.estimator.critic or whitens(options)


def whitens(options: Algorithm) -> bool:
    return options.normalize_advantages or options.estimator.whitened


def penalised(options: Algorithm) -> bool:
    """Whether advantages depend on the policy's own logprobs."""
    return options.kl_coef > 0 or (options.distils and options.opd_kl_coef > 0)


def advantages(each: Pass, old: Tensor, options: Algorithm) -> tuple[Tensor, Tensor | None]:
    """Of the tokens of a pass, and the returns that a value head learns, [N]; both 0 on tokens that are imitated only.

    The KL penalty to the reference model comes out of the rewards (arXiv:1909.08593, section 2); the teacher's, the
    token's own log(policy / teacher), out of the advantages (on-policy distillation, arXiv:2306.13649).
    """
    packed = each.packed
    chosen = packed.weights > 0
    penalty = torch.zeros_like(old)
    if options.kl_coef > 0 and each.reference is not None:
        penalty = options.kl_coef * kl_estimate(old, each.reference, kind=options.kl_loss_type)
    credit = Credit(
        credit=packed.advantages[chosen],
        penalty=penalty[chosen],
        values=None if each.values is None else each.values[chosen],
        sequences=each.sequences.at(chosen),
    )
    shaped, returns = load_tokens(options.estimator.tokens)(credit, options)
    if each.teacher is not None:
        shaped = shaped - options.opd_kl_coef * (old - each.teacher)[chosen]
    return _put(shaped, chosen), None if returns is None else _put(returns, chosen)


def settle(passes: Sequence[Pass], options: Algorithm, ranks: Sums) -> None:
    """Fill in the advantages of all passes of a batch, of which the old logprobs are known; collective when whitened.

    Whitened are those of all trained tokens of the batch, over all ranks: mean 0 and variance 1 (REINFORCE++,
    arXiv:2501.03262, section 3).
    """
    for each in passes:
        old = each.packed.rollout_logprobs if each.old is None else each.old
        each.advantages, each.returns = advantages(each, old, options)
    if not whitens(options):
        return
    trained = [(each.packed.weights > 0, each) for each in passes]
    values = [told.advantages[chosen].double().cpu() for chosen, told in trained if told.advantages is not None]
    every = torch.cat([torch.zeros(0, dtype=torch.float64), *values])
    total, count = ranks.sum_samples(torch.stack([every.sum(), every.new_tensor(float(len(every)))])).tolist()
    mean = total / max(count, 1.0)
    squares = ranks.sum_samples((every - mean).square().sum()[None])
    scale = (float(squares) / max(count, 1.0) + SMALL) ** -0.5
    for chosen, each in trained:
        if each.advantages is not None:
            each.advantages = torch.where(chosen, (each.advantages - mean) * scale, 0.0)


def _put(values: Tensor, chosen: Tensor) -> Tensor:
    """[N], of those of the chosen tokens; 0 elsewhere."""
    spread = values.new_zeros(len(chosen))
    spread[chosen] = values
    return spread
