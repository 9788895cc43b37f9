"""What losses are made of: small pure functions over packed token vectors.

Invariant: every argument and result is float32 [tokens]; nothing here reduces, masks or knows about ranks. The
reduction is the dot product with `Packed.weights` (see packing.py), so it is the same however tokens are packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miles_lite.config.choices import KLType

LOG_RATIO_LIMIT = 20.0
LOW_VAR_KL_LIMIT = 10.0


def log_ratio(new: Tensor, old: Tensor) -> Tensor:
    """log(new / old) clamped to ±20, so that its exponential stays finite in float32."""
    return (new - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clipped_policy_loss(
    logratio: Tensor,
    advantages: Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
    eps_clip_c: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, negated, and a 0/1 vector of the tokens on which a clip was active.

    PPO (arXiv:1707.06347, eq. 7) with separate bounds 1 - eps_clip and 1 + eps_clip_high (clip-higher, DAPO,
    arXiv:2503.14476, eq. 10). `eps_clip_c` > 1 bounds the loss of a negative advantage by -c·A (dual clip,
    arXiv:1912.09729, eq. 5).
    """
    ratio = logratio.exp()
    high = eps_clip if eps_clip_high is None else eps_clip_high
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - eps_clip, 1 + high) * advantages
    loss = torch.maximum(plain, clipped)
    if eps_clip_c is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -eps_clip_c * advantages), loss)
    return loss, (clipped > plain).to(loss.dtype)


def kl_estimate(logprobs: Tensor, reference: Tensor, *, kind: KLType) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens the policy sampled.

    k1, k2 and k3 of "Approximating KL divergence" (Schulman, 2020, joschu.net/blog/kl-approx.html); `low_var_kl` is
    k3 as GRPO uses it (arXiv:2402.03300, eq. 4) with the log-ratio clamped to ±20 and the estimate to ±10.
    """
    delta = logprobs - reference
    if kind == KLType.K1:
        return delta
    if kind == KLType.K2:
        return delta.square() / 2
    if kind == KLType.K3:
        return torch.expm1(-delta) + delta
    delta = delta.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(-delta) + delta).clamp(-LOW_VAR_KL_LIMIT, LOW_VAR_KL_LIMIT)
