"""What a training step tells of the tokens of kept rollouts is what it computed, and telling it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miles_lite.sample import NOT_SAMPLED, Sample
from miles_lite.traces.token_values import TokenValues
from miles_lite.train.learner import Learner
from tests.train.families import obvious_logprobs
from tests.train.helpers import joined, learner, make_batch, make_samples, parameters

pytestmark = pytest.mark.usefixtures("process_group")


def with_turns(samples: Sequence[Sample]) -> list[Sample]:
    """Their runs of sampled tokens are turns 1, 3, 5, ... of their sessions."""
    for sample in samples:
        sampled = np.flatnonzero(np.diff(np.concatenate([[0], sample.weight_versions != NOT_SAMPLED, [0]])))
        spans = sampled.reshape(-1, 2).tolist()
        sample.metadata["turn_spans"] = [[2 * at + 1, start, end] for at, (start, end) in enumerate(spans)]
    return list(samples)


def told_of(values: Sequence[TokenValues], sample: Sample, *, rollout: int) -> dict[int, tuple[float, float]]:
    """Logprob and advantage by place in the sample."""
    begins = {number: start for number, start, _ in sample.metadata["turn_spans"]}
    found = {}
    for each in (each for each in values if each.rollout == rollout):
        for place, token, *pair in zip(each.places, each.ids, each.logprobs, each.advantages, strict=True):
            at = begins[each.turn] + int(place)
            assert sample.tokens[at] == token
            found[at] = (float(pair[0]), float(pair[1]))
    return found


@pytest.mark.parametrize("flags", [(), ("--disable-tree-training",), ("--attn-implementation", "eager")])
def test_logprobs_and_advantages_are_those_of_the_step(model_dir: Path, flags: tuple[str, ...]) -> None:
    samples = make_samples(0, 3)
    samples = with_turns([*samples, joined(samples[0], samples[1], at=len(samples[0]))])
    trainer = learner(model_dir, *flags)
    logprobs = [obvious_logprobs(trainer.policy.model, sample).detach() for sample in samples]
    trainer.train(replace(make_batch(samples, [1.0, -0.5, 0.25, 2.0]), kept=frozenset({0, 3})))
    assert {each.rollout for each in trainer.token_values} == {0, 3}
    for rollout, advantage in ((0, 1.0), (3, 2.0)):
        told = told_of(trainer.token_values, samples[rollout], rollout=rollout)
        assert sorted(told) == np.flatnonzero(samples[rollout].loss_mask).tolist()
        said = torch.tensor([told[at][0] for at in sorted(told)])
        torch.testing.assert_close(said, logprobs[rollout], atol=1e-4, rtol=0)
        assert {told[at][1] for at in told} == {advantage}


@pytest.mark.parametrize("flag", ["--use-rollout-logprobs", "--use-approximate-old-logprobs"])
def test_logprobs_of_a_later_step_are_told_where_engines_say_the_old_ones(model_dir: Path, flag: str) -> None:
    samples, steps = with_turns(make_samples(4, 2)), [[[0]], [[1]]]
    trainer = learner(model_dir, flag, "--lr", "1e-7")
    logprobs = [obvious_logprobs(trainer.policy.model, sample).detach() for sample in samples]
    trainer.train(replace(make_batch(samples, [1.0, -1.0], steps=steps), kept=frozenset({0, 1})))
    for rollout in (0, 1):
        told = told_of(trainer.token_values, samples[rollout], rollout=rollout)
        said = torch.tensor([told[at][0] for at in sorted(told)])
        torch.testing.assert_close(said, logprobs[rollout], atol=1e-3, rtol=0)


def test_telling_changes_no_bit(model_dir: Path) -> None:
    samples = with_turns(make_samples(2, 4))
    steps = [[[0, 1]], [[2, 3]]]

    def trained(kept: frozenset[int]) -> tuple[Learner, dict[str, float]]:
        trainer = learner(model_dir)
        batch = replace(make_batch(samples, [1.0, -0.5, 0.25, 2.0], steps=steps), kept=kept)
        metrics = trainer.train(batch)
        return trainer, {name: value for name, value in metrics.items() if name.startswith("train/")}

    (silent, without), (telling, metrics) = trained(frozenset()), trained(frozenset(range(4)))
    assert silent.token_values == []
    assert {each.rollout for each in telling.token_values} == {0, 1, 2, 3}
    assert metrics == without
    assert torch.equal(parameters(silent), parameters(telling))


def test_samples_of_no_session_tell_nothing(model_dir: Path) -> None:
    trainer = learner(model_dir)
    trainer.train(replace(make_batch(make_samples(0, 2), [1.0, -1.0]), kept=frozenset({0, 1})))
    assert trainer.token_values == []
