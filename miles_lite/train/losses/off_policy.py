"""Corrections for tokens that another policy sampled than the one that is trained: a weight for each token's loss.

Invariant: a weight carries no gradient, is finite, and is 0 where a token takes no part; tokens that the engine sampled
behind other ids than stand before them have a ratio of 1. Corrections are pure; what the options switch on is
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from miles_lite.config.choices import Bounding, Level
from miles_lite.config.training import Algorithm
from miles_lite.hooks import LossFunction, load_hook
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.streams import Streams
from miles_lite.train.losses.terms import LOG_RATIO_LIMIT, log_ratio


def importance(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """Trainer over engine, bounded: `tis`, and a 0/1 vector of the weights that were changed.

    clip, truncate  truncated importance sampling (Ionides, 2008): "Your efficient RL framework secretly brings you
                    off-policy RL training" (Yao et al., 2025); with a policy loss whose old logprobs are the trainer's
                    it is decoupled PPO (arXiv:2110.00641; AReaL, arXiv:2505.24298, eq. 5)
    mask            IcePop (Ring-1T, arXiv:2510.18855), masked importance sampling
    """
    ratio = ratios(streams, options.tis_level)
    if options.tis_mode is Bounding.MASK:
        weights = torch.where((ratio < options.tis_clip_low) | (ratio > options.tis_clip), 0.0, ratio)
    else:
        low = 0.0 if options.tis_mode is Bounding.TRUNCATE else options.tis_clip_low
        weights = ratio.clamp(low, options.tis_clip)
    return weights, {"tis": weights, "tis_clipfrac": (weights != ratio).to(ratio.dtype)}


def rejection(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """1 where the ratio of trainer to engine is within bounds, else 0; 0 for a sequence with a token below the veto.

    "When speed kills stability: demystifying RL collapse from the training-inference mismatch" (Liu et al., 2025).
    """
    ratio = ratios(streams, options.rs_level)
    kept = ((ratio >= options.rs_lower_bound) & (ratio <= options.rs_upper_bound)).to(ratio.dtype)
    if options.rs_veto_threshold is not None:
        below = (ratios(streams, Level.TOKEN) < options.rs_veto_threshold).to(ratio.dtype)
        kept = kept * (streams.sequences.spread(streams.sequences.sum(below)) == 0)
    return kept, {"rs_maskfrac": 1 - kept}


def off_policy_mask(streams: Streams, options: Algorithm) -> tuple[Tensor, dict[str, Tensor]]:
    """0 where the advantage is negative and the mean of log(old / new) over the sequence above `opsm_delta`.

    Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).
    """
    drift = streams.sequences.spread(streams.sequences.mean(-streams.logratio.detach()))
    out = ((streams.advantages < 0) & (drift > options.opsm_delta)).to(drift.dtype)
    return 1 - out, {"opsm_clipfrac": out}


def ratios(streams: Streams, level: Level) -> Tensor:
    """Of trainer to engine, [N], without gradient: of the token, or of its sequence, or the latter's geometric mean.

    Their logarithms are clamped to ±20.
    """
    return of_level(log_ratio(streams.old, streams.comparable).detach(), streams.sequences, level).exp()


def of_level(logratio: Tensor, sequences: Sequences, level: Level) -> Tensor:
    """A log-ratio of tokens made that of their sequences."""
    if level is Level.TOKEN:
        return logratio
    whole = sequences.sum(logratio) if level is Level.SEQUENCE else sequences.mean(logratio)
    return sequences.spread(whole.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def corrections(options: Algorithm) -> list[LossFunction]:
    """Those that the options switch on."""
    path = options.custom_tis_function_path
    chosen: list[tuple[bool, Callable[[], LossFunction]]] = [
        (path is not None, lambda: load_hook(path or "", flag="--custom-tis-function-path")),
        (options.use_tis and path is None, lambda: importance),
        (options.use_rs, lambda: rejection),
        (options.use_opsm, lambda: off_policy_mask),
    ]
    return [function() for on, function in chosen if on]
