"""Every loss and correction against its paper, transcribed token by token, and its gradient against theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miles_lite.config.algorithms import LOSSES
from miles_lite.config.choices import Bounding, KLType, Level
from miles_lite.config.training import Algorithm
from miles_lite.train.losses import load_loss
from miles_lite.train.losses.objective import imitation, objective
from miles_lite.train.losses.off_policy import importance, off_policy_mask, rejection
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.losses.streams import Streams
from miles_lite.train.passes import approximate
from miles_lite.train.value import value_loss

Row = dict[str, Any]
"""A sample's tokens: lists of scalars, `new` with gradient."""


@st.composite
def streams(draw: st.DrawFn) -> Streams:
    """Of up to four samples, one of which may have no token, with ratios from none to beyond every clamp."""
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    size = sum(lengths)
    near = st.one_of(st.just(0.0), st.floats(-0.6, 0.6), st.sampled_from([-35.0, 35.0]))

    def column(values: st.SearchStrategy[float]) -> Tensor:
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64)

    new = column(st.floats(-12.0, -0.01))
    credit = [draw(st.sampled_from([0.0, 1.0, -1.0, 0.37, -2.5])) for _ in lengths]
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Streams(
        new=new.clone().requires_grad_(),
        entropy=column(st.floats(0, 5)).requires_grad_(),
        old=(new - column(near)).clamp_max(0),
        reference=(new - column(near)).clamp_max(0),
        rollout_logprobs=(new - column(near)).clamp_max(0),
        in_context=torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool),
        advantages=torch.tensor(credit, dtype=torch.float64)[owners],
        sequences=Sequences(owners, len(lengths)),
    )


def samples(given: Streams) -> list[list[int]]:
    """The tokens of each sample that has some."""
    owners = given.sequences.samples.tolist()
    return [[at for at, owner in enumerate(owners) if owner == sample] for sample in sorted(set(owners))]


def clamp(value: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(torch.maximum(value, value.new_tensor(low)), value.new_tensor(high))


def ratio_log(given: Streams, at: int) -> Tensor:
    return clamp(given.new[at] - given.old[at], -20, 20)


def per_token(given: Streams, of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """`of` each token's log-ratio, advantage and new logprob."""
    tokens = [of(ratio_log(given, at), given.advantages[at], given.new[at]) for at in range(len(given.new))]
    return torch.stack(tokens) if tokens else given.new


def spread(given: Streams, of: Callable[[list[int]], Tensor]) -> Tensor:
    """`of` each sample, at each of its tokens."""
    result: dict[int, Tensor] = {}
    for tokens in samples(given):
        value = of(tokens)
        result |= dict.fromkeys(tokens, value)
    return torch.stack([result[at] for at in range(len(given.new))]) if result else given.new


def ppo(logratio: Tensor, advantage: Tensor, options: Algorithm) -> Tensor:
    ratio, high = logratio.exp(), options.eps_clip_high or options.eps_clip
    loss = -torch.minimum(ratio * advantage, clamp(ratio, 1 - options.eps_clip, 1 + high) * advantage)
    if options.eps_clip_c is not None and advantage < 0:
        return torch.minimum(loss, -options.eps_clip_c * advantage)
    return loss


def policy_loss(given: Streams, options: Algorithm) -> Tensor:
    return per_token(given, lambda logratio, advantage, _: ppo(logratio, advantage, options))


def gspo(given: Streams, options: Algorithm) -> Tensor:
    def of(tokens: list[int]) -> Tensor:
        mean = torch.stack([ratio_log(given, at) for at in tokens]).sum() / len(tokens)
        return ppo(mean, given.advantages[tokens[0]], options)

    return spread(given, of)


def cispo(given: Streams, options: Algorithm) -> Tensor:
    high = 1 + (options.eps_clip_high or options.eps_clip)
    return per_token(
        given,
        lambda logratio, advantage, new: -clamp(logratio.detach().exp(), 1 - options.eps_clip, high) * advantage * new,
    )


def gmpo(given: Streams, options: Algorithm) -> Tensor:
    high = options.eps_clip_high or options.eps_clip

    def of(tokens: list[int]) -> Tensor:
        advantage = given.advantages[tokens[0]]
        sign = 1.0 if advantage > 0 else -1.0
        parts = []
        for at in tokens:
            plain = ratio_log(given, at)
            clipped = clamp(plain, -options.eps_clip, high)
            parts.append(plain if sign * plain <= sign * clipped else clipped)
        return -advantage * (torch.stack(parts).sum() / len(tokens)).exp()

    return spread(given, of)


def sapo(given: Streams, options: Algorithm) -> Tensor:
    def of(logratio: Tensor, advantage: Tensor, _: Tensor) -> Tensor:
        tau = options.sapo_tau_pos if advantage > 0 else options.sapo_tau_neg
        return -torch.sigmoid(tau * (logratio.exp() - 1)) * 4 / tau * advantage

    return per_token(given, of)


def dppo(given: Streams, options: Algorithm, *, divergence: Callable[[float, float], float], most: float) -> Tensor:
    result = []
    for at in range(len(given.new)):
        new, old = math.exp(float(given.new[at].detach())), math.exp(float(given.old[at]))
        advantage, logratio = given.advantages[at], ratio_log(given, at)
        away = (advantage > 0 and new > old) or (advantage < 0 and new < old)
        out = away and divergence(old, new) > most
        result.append(logratio.exp() * advantage * (0.0 if out else -1.0))
    return torch.stack(result) if result else given.new


def variation(given: Streams, options: Algorithm) -> Tensor:
    return dppo(given, options, divergence=lambda old, new: abs(old - new), most=options.dppo_tv)


def bernoulli(given: Streams, options: Algorithm) -> Tensor:
    def divergence(old: float, new: float) -> float:
        old, new = (min(max(p, 1e-7), 1 - 1e-7) for p in (old, new))
        return old * math.log(old / new) + (1 - old) * math.log((1 - old) / (1 - new))

    return dppo(given, options, divergence=divergence, most=options.dppo_kl)


def covariances(given: Streams) -> list[float]:
    new, advantages = given.new.tolist(), given.advantages.tolist()
    middle, credit = sum(new) / max(1, len(new)), sum(advantages) / max(1, len(new))
    return [(a - middle) * (b - credit) for a, b in zip(new, advantages, strict=True)]


def kl_cov(given: Streams, options: Algorithm) -> Tensor:
    values = covariances(given)
    count = max(1, int(options.cov_ratio * len(values)))
    chosen = sorted(range(len(values)), key=lambda at: -values[at])[:count]
    result = []
    for at in range(len(values)):
        logratio = ratio_log(given, at)
        penalty = options.kl_cov_coef * logratio.abs() if at in chosen else 0.0
        result.append(-logratio.exp() * given.advantages[at] + penalty)
    return torch.stack(result) if result else given.new


TRANSCRIPTS: dict[str, Callable[[Streams, Algorithm], Tensor]] = {
    "policy_loss": policy_loss,
    "reinforce": lambda given, _: per_token(given, lambda r, advantage, new: -advantage * new),
    "gspo": gspo,
    "cispo": cispo,
    "gmpo": gmpo,
    "sapo": sapo,
    "dppo_tv": variation,
    "dppo_kl": bernoulli,
    "kl_cov": kl_cov,
    "sft_loss": lambda given, _: per_token(given, lambda r, advantage, new: -new),
}


def agree(given: Streams, got: Tensor, expected: Tensor) -> None:
    """Values and gradients by `new`; all finite."""
    weights = torch.linspace(0.5, 1.5, len(got), dtype=torch.float64)
    pairs = []
    for loss in (got, expected):
        gradient = torch.zeros_like(given.new)
        if loss.requires_grad:
            total = (loss * weights).sum()
            (gradient,) = torch.autograd.grad(total, given.new, retain_graph=True, materialize_grads=True)
        pairs.append((loss.detach(), gradient))
    for mine, theirs in zip(*pairs, strict=True):
        assert bool(mine.isfinite().all())
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)


def clear_of_ties(given: Streams, name: str) -> bool:
    """Whether the transcription's choice among equal covariances is the function's."""
    values = covariances(given)
    return name != "kl_cov" or len({round(value, 9) for value in values}) == len(values)


@pytest.mark.parametrize("name", TRANSCRIPTS)
@settings(max_examples=25)
@given(given=streams(), high=st.sampled_from([None, 0.4]), c=st.sampled_from([None, 3.0]))
def test_a_loss_is_what_its_paper_says(name: str, given: Streams, high: float | None, c: float | None) -> None:
    c = c if "eps_clip_c" in LOSSES[name].flags else None
    options = Algorithm(loss_type=name, eps_clip_high=high, eps_clip_c=c, cov_ratio=0.3)
    loss, metrics = load_loss(LOSSES[name].path)(given, options)
    if clear_of_ties(given, name):
        agree(given, loss, TRANSCRIPTS[name](given, options))
    assert all(each.shape == given.new.shape and bool(each.isfinite().all()) for each in metrics.values())


def test_every_loss_is_transcribed() -> None:
    assert set(LOSSES) - set(TRANSCRIPTS) == {"clip_cov"}, "which has a test of its own"


@settings(max_examples=25)
@given(given=streams())
def test_clip_cov_holds_back_some_of_those_between_its_bounds(given: Streams) -> None:
    options = Algorithm(loss_type="clip_cov", cov_ratio=0.5, cov_low=0.2, cov_high=3.0)
    loss, metrics = load_loss(LOSSES["clip_cov"].path)(given, options)
    plain, values = policy_loss(given, options), covariances(given)
    _, unheld = load_loss(LOSSES["policy_loss"].path)(given, options)
    between = [at for at, value in enumerate(values) if 0.2 < value < 3.0 and not unheld["pg_clipfrac"][at]]
    held = [at for at in range(len(values)) if metrics["pg_clipfrac"][at] and not unheld["pg_clipfrac"][at]]
    assert set(held) <= set(between)
    assert len(held) == min(len(between), max(1, len(values) // 2))
    kept = torch.tensor([0.0 if at in held else 1.0 for at in range(len(values))], dtype=torch.float64)
    agree(given, loss, plain * kept)
    again, _ = load_loss(LOSSES["clip_cov"].path)(given, options)
    assert torch.equal(loss, again)


def engine_ratios(given: Streams, level: Level) -> list[float]:
    """Of trainer to engine, token by token."""
    logs = [
        max(-20.0, min(20.0, float(given.old[at] - given.rollout_logprobs[at]))) if given.in_context[at] else 0.0
        for at in range(len(given.new))
    ]
    result = list(logs)
    for tokens in samples(given):
        total = sum(logs[at] for at in tokens)
        for at in tokens:
            if level is Level.SEQUENCE:
                result[at] = max(-20.0, min(20.0, total))
            if level is Level.GEOMETRIC:
                result[at] = total / len(tokens)
    return [math.exp(value) for value in result]


def near_a_bound(values: list[float], *bounds: float) -> bool:
    return any(abs(value - bound) < 1e-6 * bound for value in values for bound in bounds)


@settings(max_examples=30)
@given(given=streams(), level=st.sampled_from(Level), mode=st.sampled_from(Bounding))
def test_importance_weights_are_bounded_as_the_mode_says(given: Streams, level: Level, mode: Bounding) -> None:
    options = Algorithm(use_tis=True, tis_level=level, tis_mode=mode, tis_clip=1.3, tis_clip_low=0.8)
    weights, metrics = importance(given, options)
    values = engine_ratios(given, level)
    expected = {
        Bounding.CLIP: [min(max(value, 0.8), 1.3) for value in values],
        Bounding.TRUNCATE: [min(value, 1.3) for value in values],
        Bounding.MASK: [value if 0.8 <= value <= 1.3 else 0.0 for value in values],
    }[mode]
    if not near_a_bound(values, 0.8, 1.3):
        torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert not weights.requires_grad
    assert torch.equal(metrics["tis"], weights)


@settings(max_examples=30)
@given(given=streams(), level=st.sampled_from(Level), veto=st.sampled_from([None, 0.7]))
def test_rejection_keeps_what_is_within_its_bounds(given: Streams, level: Level, veto: float | None) -> None:
    options = Algorithm(use_rs=True, rs_level=level, rs_veto_threshold=veto)
    kept, metrics = rejection(given, options)
    values, tokens = engine_ratios(given, level), engine_ratios(given, Level.TOKEN)
    expected = [float(0.5 <= value <= 2.0) for value in values]
    for sample in samples(given):
        if veto is not None and any(tokens[at] < veto for at in sample):
            expected = [0.0 if at in sample else value for at, value in enumerate(expected)]
    if not near_a_bound([*values, *tokens], 0.5, 2.0, 0.7):
        assert kept.tolist() == expected
    assert torch.equal(metrics["rs_maskfrac"], 1 - kept)


@settings(max_examples=25)
@given(given=streams())
def test_off_policy_sequences_of_negative_advantage_are_masked(given: Streams) -> None:
    kept, _ = off_policy_mask(given, Algorithm(use_opsm=True, opsm_delta=0.05))
    expected = [1.0] * len(given.new)
    for tokens in samples(given):
        drift = sum(-float(ratio_log(given, at)) for at in tokens) / len(tokens)
        for at in tokens:
            expected[at] = float(not (given.advantages[at] < 0 and drift > 0.05))
    assert kept.tolist() == expected
    assert not kept.requires_grad


@settings(max_examples=25)
@given(given=streams(), kind=st.sampled_from(KLType), unbiased=st.booleans(), clamped=st.sampled_from([None, 2.0]))
def test_the_objective_adds_bonus_and_penalty(
    given: Streams, kind: KLType, unbiased: bool, clamped: float | None
) -> None:
    options = Algorithm(
        use_kl_loss=True, kl_loss_coef=0.3, kl_loss_type=kind, use_unbiased_kl=unbiased, entropy_coef=0.1,
        entropy_clamp=clamped, use_opsm=True,
    )  # fmt: skip
    assert given.reference is not None
    kl = []
    for at in range(len(given.new)):
        d = given.new[at] - given.reference[at]
        d = clamp(d, -20, 20) if kind is KLType.LOW_VAR else d
        k3 = torch.expm1(-d) + d
        estimate = {KLType.K1: d, KLType.K2: d**2 / 2, KLType.K3: k3, KLType.LOW_VAR: clamp(k3, -10, 10)}[kind]
        kl.append(estimate * ratio_log(given, at).exp() if unbiased else estimate)
    most = math.inf if clamped is None else clamped
    bonus = torch.where(given.entropy <= most, given.entropy, most)
    kept, _ = off_policy_mask(given, options)
    expected = policy_loss(given, options) * kept - 0.1 * bonus + 0.3 * (torch.stack(kl) if kl else given.new)
    terms = objective(given, options)
    agree(given, terms["loss"], expected)
    if len(given.new):
        mine, theirs = (torch.autograd.grad(each.sum(), given.entropy)[0] for each in (terms["loss"], expected))
        torch.testing.assert_close(mine, theirs)


def test_imitation_is_the_cross_entropy_weighed() -> None:
    given = Streams.empty(reference=False)
    given = replace(given, new=torch.tensor([-1.0, -3.0]), advantages=torch.tensor([5.0, 5.0]))
    terms = imitation(given, Algorithm(echo_coef=0.1))
    assert terms["echo_loss"].tolist() == [1.0, 3.0]
    assert terms["loss"].tolist() == pytest.approx([0.1, 0.3])


def test_approximate_old_logprobs_are_one_step_behind() -> None:
    """AReaL's form: behave + (v_old - v_behave) / (v_now - v_behave) x (now - behave), where old is now - 1."""
    sampled, now = torch.tensor([-4.0, -4.0, -4.0, -4.0]), torch.tensor([-1.0, -1.0, -1.0, -1.0])
    old = approximate(sampled, now, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(old, torch.tensor([-1.0, -4.0, -4.0 + 3 / 2, -4.0 + 3 * 2 / 3]))


def test_the_value_loss_is_the_larger_of_clipped_and_plain() -> None:
    values, old, returns = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.0, 0.9, 0.0]), torch.tensor([1.0, 2.0, 2.0])
    terms = value_loss(values, old, returns, Algorithm(value_clip=0.2, value_loss_coef=0.5))
    torch.testing.assert_close(terms["value_loss"], torch.tensor([0.64, 1.0, 1.9**2]))
    torch.testing.assert_close(terms["loss"], terms["value_loss"] / 2)
    assert terms["value_clipfrac"].tolist() == [1.0, 0.0, 0.0]
