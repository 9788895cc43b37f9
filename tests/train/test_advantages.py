"""Every estimator against its paper, transcribed rollout by rollout or token by token, and what becomes of tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.algorithms import ADVANTAGES
from miles_lite.config.choices import Reduction
from miles_lite.config.rewards import Overlong
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.sample import Group, Rollout, Sample
from miles_lite.train.advantages import estimate, load_advantage
from miles_lite.train.advantages.gae import gae
from miles_lite.train.advantages.tokens import Credit, discounted, everywhere
from miles_lite.train.batching import batch_of, fetch, make_batches
from miles_lite.train.flops import Flops
from miles_lite.train.losses.sequences import Sequences
from miles_lite.train.reductions import REDUCTIONS, Counts, StepSize
from miles_lite.train.shares import imitated_tokens, share_out
from tests.rollout.helpers import make_rollout, make_sample
from tests.train.helpers import make_samples

PLAIN = Algorithm()


def group(rewards: Sequence[float | None], lengths: Sequence[int] | None = None) -> Group:
    sizes = lengths or [2] * len(rewards)
    made = [
        make_rollout(at, 0, make_sample(size + 2, size), reward=reward)
        for at, (reward, size) in enumerate(zip(rewards, sizes, strict=True))
    ]
    return Group(index=0, prompt={}, rollouts=made)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 where there is none."""
    return statistics.stdev(values) if len(set(values)) > 1 else 0.0


def grpo(rewards: list[float], lengths: list[int]) -> list[float]:
    return [(reward - statistics.fmean(rewards)) / (spread(rewards) + 1e-6) for reward in rewards]


def mean_only(rewards: list[float], lengths: list[int]) -> list[float]:
    return [reward - statistics.fmean(rewards) for reward in rewards]


def rloo(rewards: list[float], lengths: list[int]) -> list[float]:
    return [
        reward - statistics.fmean(rewards[:at] + rewards[at + 1 :]) if len(rewards) > 1 else 0.0
        for at, reward in enumerate(rewards)
    ]


def opo(rewards: list[float], lengths: list[int]) -> list[float]:
    baseline = sum(n * r for n, r in zip(lengths, rewards, strict=True)) / sum(lengths)
    return [reward - baseline for reward in rewards]


def maxrl(rewards: list[float], lengths: list[int]) -> list[float]:
    mean = statistics.fmean(rewards)
    return [(reward - mean) / mean if mean else 0.0 for reward in rewards]


TRANSCRIPTS: dict[str, Callable[[list[float], list[int]], list[float]]] = {
    "grpo": grpo,
    "gspo": grpo,
    "mean_only": mean_only,
    "dr_grpo": mean_only,
    "reinforce_plus_plus_baseline": mean_only,
    "rloo": rloo,
    "opo": opo,
    "maxrl": maxrl,
    "per_turn": grpo,
    "reinforce_plus_plus": lambda rewards, lengths: rewards,
    "ppo": lambda rewards, lengths: rewards,
    "on_policy_distillation": lambda rewards, lengths: [0.0] * len(rewards),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
@settings(max_examples=30)
@given(st.lists(st.tuples(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 7.25])), st.integers(1, 9)), max_size=6))
def test_an_estimator_is_what_its_paper_says(name: str, told: list[tuple[float | None, int]]) -> None:
    """Of rewarded rollouts alone; a rollout without a reward takes no part."""
    rollouts, values = estimate(
        [group([reward for reward, _ in told], [size for _, size in told])], Algorithm(advantage_estimator=name)
    )
    kept = [(reward, size) for reward, size in told if reward is not None]
    rewards, lengths = [reward for reward, _ in kept], [size for _, size in kept]
    assert [rollout.reward for rollout in rollouts] == rewards
    expected = TRANSCRIPTS[name](rewards, lengths) if kept else []
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-9)
    if len(set(rewards)) == 1 and name not in ("reinforce_plus_plus", "ppo"):
        assert set(values) == {0.0}


def test_every_estimator_is_transcribed() -> None:
    assert set(ADVANTAGES) - set(TRANSCRIPTS) == {"gdpo"}, "which has a test of its own"


def test_rewards_that_cannot_be_likelihoods_are_refused() -> None:
    """Also those that nobody knew before, by the line of their prompt."""
    bad = group([1.0, -1.0])
    bad.prompt["row"] = 7
    with pytest.raises(UserError, match=r"maxrl: a reward is -1, of the prompt of line 7, .* or take grpo"):
        estimate([group([1.0, 0.0]), bad], Algorithm(advantage_estimator="maxrl"))


def test_gdpo_normalises_each_reward_and_then_the_batch() -> None:
    first, second = group([1.0, 1.0, 1.0]), group([0.0, 1.0])
    told = [{"right": 1.0, "short": 0.2}, {"right": 0.0, "short": 0.2}, {"right": 1.0, "short": None}]
    for rollout, rewards in zip(first.rollouts, told, strict=True):
        rollout.metadata["rewards"] = rewards
    _, values = estimate([first, second], Algorithm(advantage_estimator="gdpo"))
    right, alone = grpo([1.0, 0.0, 1.0], []), grpo([0.0, 1.0], [])
    sums = [*right, *alone]
    middle = statistics.fmean(sums)
    assert values == pytest.approx([(each - middle) / (spread(sums) + 1e-6) for each in sums])


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 50), st.integers(1, 50), st.sampled_from([0.5, 1.0]))
def test_overlong_responses_lose_what_the_paper_says(length: int, longest: int, cache: int, factor: float) -> None:
    """DAPO, arXiv:2503.14476, equation 13."""
    if length <= longest - cache:
        expected = 0.0
    elif length <= longest:
        expected = ((longest - cache) - length) / cache
    else:
        expected = -1.0
    assert Overlong(longest, cache, factor).penalty([length, 1]) == pytest.approx(factor * expected)


def test_length_is_taken_from_rewards_before_advantages() -> None:
    """Of the longest turn; what is rewarded stays what it was."""
    made, overlong = group([1.0, 1.0, None, 0.0], lengths=[4, 7, 9, 8]), Overlong(8, 4, 1.0)
    rollouts, values = estimate([made], PLAIN, overlong)
    assert [rollout.index for rollout in rollouts] == [0, 1, 3]
    assert values == pytest.approx(grpo([1.0, 0.25, -1.0], []))
    assert [rollout.reward for rollout in made.rollouts] == [1.0, 1.0, None, 0.0]
    split = make_sample(12, 9)
    split.metadata["turn_spans"] = [[0, 3, 6], [1, 6, 12]]
    assert (make_sample(12, 9).record().longest_turn, split.record().longest_turn) == (9, 6)


def test_credit_by_turn_is_that_of_the_turn_and_what_follows() -> None:
    made = group([1.0, 0.0, 0.5])
    for rollout, rewards in zip(made.rollouts, ([0.0, 1.0], [1.0, None], None), strict=True):
        if rewards is not None:
            rollout.metadata["turn_rewards"] = rewards
    _, values = estimate([made], Algorithm(advantage_estimator="per_turn", gamma=0.5))
    outcome, first = grpo([1.0, 0.0, 0.5], []), grpo([0.0, 1.0], [])
    assert values[0] == pytest.approx((outcome[0] + first[0], outcome[0]))
    assert values[1] == pytest.approx((outcome[1] + first[1], outcome[1]))
    assert values[2] == pytest.approx(outcome[2])
    made.rollouts[0].metadata["turn_rewards"] = "x"
    with pytest.raises(UserError, match="turn_rewards of rollout 0 is no list"):
        estimate([made], Algorithm(advantage_estimator="per_turn"))


def test_each_token_has_the_credit_of_its_turn() -> None:
    sample = Sample(
        tokens=np.arange(8, dtype=np.int32),
        loss_mask=np.array([0, 1, 1, 0, 1, 0, 0, 1], np.uint8),
        logprobs=np.zeros(8, np.float32),
        temperatures=np.ones(8, np.float32),
        weight_versions=np.array([-1, 3, 3, -1, 4, -1, -1, 5], np.int32),
    ).validate()
    batch = batch_of([sample, sample], [0.25, 0.0], rollout_id=5)
    batch.turn_advantages[1] = (1.0, -2.0)
    plain, turns = share_out(batch, PLAIN, imitated=[0])
    assert plain.advantages.tolist() == [0.25] * 4
    assert turns.advantages.tolist() == [1.0, 1.0, -2.0, -2.0], "the last one is that of later turns"
    assert turns.staleness.tolist() == [2, 2, 1, 0]
    sample.metadata["turn_spans"] = [[0, 1, 3], [4, 4, 5], [1, 7, 8]]
    batch.turn_advantages[1] = (1.0, -2.0, 0.0, 0.0, 9.0)
    assert share_out(batch, PLAIN, imitated=[0])[1].advantages.tolist() == [1.0, 1.0, 9.0, -2.0]


@st.composite
def credits(draw: st.DrawFn) -> Credit:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    size = sum(lengths)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def column() -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.floats(-3, 3), min_size=size, max_size=size)), dtype=torch.float64)

    rewards = torch.tensor([draw(st.floats(-2, 2)) for _ in lengths], dtype=torch.float64)
    return Credit(credit=rewards[owners], penalty=column(), values=column(), sequences=Sequences(owners, len(lengths)))


def rows(credit: Credit) -> list[tuple[list[float], list[float], list[int]]]:
    """Of each sample that has tokens: their rewards, their values, where they are."""
    assert credit.values is not None
    owners, result = credit.sequences.samples.tolist(), []
    for sample in sorted(set(owners)):
        places = [at for at, owner in enumerate(owners) if owner == sample]
        rewards = [-float(credit.penalty[at]) for at in places]
        rewards[-1] += float(credit.credit[places[0]])
        result.append((rewards, credit.values[places].tolist(), places))
    return result


@settings(max_examples=30)
@given(credits(), st.floats(0, 1), st.floats(0, 1))
def test_generalised_advantage_estimation(credit: Credit, gamma: float, lambd: float) -> None:
    advantages, returns = gae(credit, Algorithm(gamma=gamma, lambd=lambd))
    assert returns is not None
    for rewards, values, places in rows(credit):
        following = [*values[1:], 0.0]
        deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
        for start, at in enumerate(places):
            expected = sum((gamma * lambd) ** k * delta for k, delta in enumerate(deltas[start:]))
            assert float(advantages[at]) == pytest.approx(expected, abs=1e-9)
            assert float(returns[at]) == pytest.approx(expected + values[start], abs=1e-9)


@settings(max_examples=30)
@given(credits(), st.floats(0, 1))
def test_discounted_rewards_and_the_whole_credit(credit: Credit, gamma: float) -> None:
    sums, _ = discounted(credit, Algorithm(gamma=gamma))
    whole, _ = everywhere(credit, PLAIN)
    for rewards, _, places in rows(credit):
        for start, at in enumerate(places):
            expected = sum(gamma**k * reward for k, reward in enumerate(rewards[start:]))
            assert float(sums[at]) == pytest.approx(expected, abs=1e-9)
            assert float(whole[at]) == pytest.approx(float(credit.credit[at] - credit.penalty[at]))


def rated_batches(reduction: Reduction, *, ranks: int) -> tuple[list[Rollout], list[float]]:
    """Two prompts, of which one has a rollout of two samples; the total share of each rollout's tokens over ranks."""
    first, second = group([1.0, 0.0], [3, 5]), group([1.0], [4])
    first.rollouts[0] = make_rollout(0, 0, make_sample(5, 3), make_sample(12, 7), reward=1.0)
    second.rollouts[0].index, second.rollouts[0].group_index = 2, 1
    options = Algorithm(loss_reduction=reduction, loss_constant_length=16)
    rated, flops = estimate([first, second], options), Flops(per_token=1.0, per_pair=0.0)
    batches = make_batches(0, *rated, ranks=ranks, global_batch_size=3, options=options, flops=flops)
    totals = [0.0] * 3
    for batch in map(fetch, batches):
        for rollout, shares in zip(batch.rollouts, share_out(batch, options, imitated=[0]), strict=True):
            totals[int(rollout)] += float(shares.policy.sum())
    return [*first.rollouts, *second.rollouts], totals


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_reduction_is_a_mean_of_what_it_names(ranks: int) -> None:
    """Trained tokens: 3 and 7 of one rollout, 5 of the next, and 4 of the other prompt's."""
    expected = {
        Reduction.TOKEN: [10 / 19, 5 / 19, 4 / 19],
        Reduction.SAMPLE: [2 / 4, 1 / 4, 1 / 4],
        Reduction.ROLLOUT: [1 / 3, 1 / 3, 1 / 3],
        Reduction.PROMPT: [10 / 15 / 2, 5 / 15 / 2, 1 / 2],
        Reduction.CONSTANT: [10 / 16 / 3, 5 / 16 / 3, 4 / 16 / 3],
    }
    assert set(expected) == set(Reduction)
    for reduction, shares in expected.items():
        rollouts, totals = rated_batches(reduction, ranks=ranks)
        assert [rollout.trained_tokens for rollout in rollouts] == [10, 5, 4]
        assert totals == pytest.approx(shares), reduction


def test_no_reduction_divides_by_nothing() -> None:
    nothing = np.zeros(1)
    counts, step = Counts(nothing, nothing, nothing, 1.0), StepSize(1, 1, 1, 0)
    assert all(math.isfinite(1 / float(reduce(counts, step)[0])) for reduce in REDUCTIONS.values())


def test_what_the_agent_was_told_is_imitated_with_a_share_of_its_own() -> None:
    options = Algorithm(echo_coef=0.1)
    samples = make_samples(3, 3)
    batch = batch_of(samples, [1.0] * 3)
    (total,) = imitated_tokens(batch, options)
    told = [int(((s.weight_versions == -1) & (np.arange(len(s)) > s.prompt_length)).sum()) for s in samples]
    assert total == sum(told)
    shares = share_out(batch, options, imitated=[total])
    assert sum(each.imitation.sum() for each in shares) == pytest.approx(1.0)
    for sample, each, plain in zip(samples, shares, share_out(batch, PLAIN, imitated=[0]), strict=True):
        assert each.policy.sum() == pytest.approx(plain.policy.sum())
        assert not np.any((each.policy > 0) & (each.imitation > 0))
        assert set(sample.weight_versions[each.places[each.imitation > 0]].tolist()) <= {-1}
    samples[0].metadata["imitate"] = [[0, 3]]
    assert np.flatnonzero(samples[0].observation_mask).tolist() == [1, 2], "nothing predicts the first token"


def test_names_load() -> None:
    assert all(callable(load_advantage(estimator.path)) for estimator in ADVANTAGES.values())


@pytest.mark.parametrize("flag", ["advantage_estimator", "custom_reward_post_process_path"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("None", "returned None: expected .*, one for each of [24] rollouts"),
        ("[1.0]", r"1 (advantages|rewards), for [24] rollouts"),
        ("[float('nan')] * COUNT", "nan among"),
        ("[[0.5, 0.5]] * COUNT", r"\[0.5, 0.5\] among"),
        ("['much'] * COUNT", "'much' among"),
    ],
)
def test_what_is_no_finite_number_of_each_is_refused_by_its_flag(
    flag: str, said: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    count = 2 if flag == "advantage_estimator" else 4
    file.write_text(f"COUNT = {count}\ndef run(made, options, /):\n    return {said}\n")
    mine: dict[str, Any] = {flag: f"{file}:run"}
    with pytest.raises(UserError, match=f"^--{flag.replace('_', '-')} {file}:run: .*({message})"):
        estimate([group([1.0, 0.0]), group([0.0, 1.0])], Algorithm(**mine))
