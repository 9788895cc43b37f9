from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.config.training import Algorithm
from miles_lite.hooks import Advantage
from miles_lite.sample import Group, Sample
from miles_lite.train.advantages import estimate
from miles_lite.train.batching import Batch, fetch, make_batches
from miles_lite.train.flops import Flops
from tests.rollout.helpers import make_rollout, make_sample

PLAIN = Algorithm()
FLOPS = Flops(per_token=2.0, per_pair=0.01)


def tree_tokens(samples: Iterable[Sample]) -> int:
    """Prefixes that are equal count once, as far as records know them."""
    return len({tuple(sample.tokens[: end + 1].tolist()) for sample in samples for end in range(len(sample))})


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    index = count()
    made = []
    for group_index in range(draw(st.integers(1, 4))):
        group = Group(index=group_index, prompt={})
        for _ in range(draw(st.integers(1, 5))):
            lengths = draw(st.lists(st.integers(2, 30), max_size=3))
            samples = [make_sample(length, draw(st.integers(0, length - 1))) for length in lengths]
            reward = draw(st.one_of(st.none(), st.floats(-2, 2)))
            group.rollouts.append(make_rollout(next(index), group_index, *samples, reward=reward))
        made.append(group)
    return made


def batches_of(made: list[Group], *, ranks: int, size: int, options: Algorithm = PLAIN) -> list[Batch]:
    """As ranks get them, and fetched."""
    rated = estimate(made, options)
    return [
        fetch(one) for one in make_batches(7, *rated, ranks=ranks, global_batch_size=size, options=options, flops=FLOPS)
    ]


@given(groups(), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_every_trained_sample_is_in_one_micro_batch_and_ranks_agree(
    made: list[Group], ranks: int, batch: int, dynamic: bool
) -> None:
    options = Algorithm(use_dynamic_batch_size=dynamic, max_tokens_per_gpu=32, micro_batch_size=2)
    batches = batches_of(made, ranks=ranks, size=batch, options=options)
    expected = [s for g in made for r in g.rollouts if r.trainable for s in r.fetch() if s.trained_tokens]
    placed = [one.samples[index] for one in batches for index in chain.from_iterable(chain.from_iterable(one.steps))]
    assert sorted(map(id, placed)) == sorted(map(id, expected))
    shapes = {tuple(len(step) for step in one.steps) for one in batches}
    assert len(shapes) == 1
    rollouts = [r for g in made for r in g.rollouts if r.reward is not None and r.trained_tokens]
    assert all(sum(size.rollouts for size in one.sizes) == len(rollouts) for one in batches)
    for one in batches:
        for micro_batch in chain.from_iterable(one.steps):
            assert not dynamic or len(micro_batch) == 1 or tree_tokens(one.samples[i] for i in micro_batch) <= 32
    for rollout in rollouts:
        homes = {
            step
            for one in batches
            for step, plan in enumerate(one.steps)
            for index in chain.from_iterable(plan)
            if any(one.samples[index] is sample for sample in rollout.fetch())
        }
        assert len(homes) == 1


def group_of(*rewards: float | None) -> Group:
    rollouts = [make_rollout(i, 0, make_sample(4, 2), reward=reward) for i, reward in enumerate(rewards)]
    return Group(index=0, prompt={}, rollouts=rollouts)


def advantages(group: Group, options: Algorithm) -> dict[int, Advantage]:
    """By rollout."""
    rollouts, values = estimate([group], options)
    return {rollout.index: value for rollout, value in zip(rollouts, values, strict=True)}


def test_grpo_advantages_are_standardised_over_rewarded_rollouts() -> None:
    values = advantages(group_of(1.0, 0.0, None, 0.0, 1.0), PLAIN)
    spread = np.std([1, 0, 0, 1], ddof=1)
    assert values == pytest.approx({0: 0.5 / spread, 1: -0.5 / spread, 3: -0.5 / spread, 4: 0.5 / spread}, rel=1e-5)


def test_equal_rewards_have_no_advantage_and_one_rollout_neither() -> None:
    assert set(advantages(group_of(0.7, 0.7, 0.7), PLAIN).values()) == {0.0}
    assert advantages(group_of(1.0), PLAIN) == {0: 0.0}


def test_normalisation_can_be_switched_off() -> None:
    assert advantages(group_of(1.0, 0.0), Algorithm(disable_grpo_std_normalization=True)) == {0: 0.5, 1: -0.5}
    assert advantages(group_of(1.0, 0.0), Algorithm(disable_rewards_normalization=True)) == {0: 1.0, 1: 0.0}


def test_siblings_share_their_rollouts_denominator_and_advantage() -> None:
    group = group_of(1.0, 0.0)
    group.rollouts[0] = make_rollout(0, 0, make_sample(4, 2), make_sample(9, 5), reward=1.0)
    (batch,) = batches_of([group], ranks=1, size=2)
    assert sorted(batch.rollout_tokens.tolist()) == [2.0, 7.0, 7.0]
    assert len(set(batch.advantages[batch.rollout_tokens == 7.0].tolist())) == 1
