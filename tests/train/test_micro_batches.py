"""Families stay together, within budgets, and ranks get alike to do."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.config.training import Algorithm
from miles_lite.sample import Sample
from miles_lite.train.flops import Flops, flops
from miles_lite.train.micro_batches import micro_batches
from miles_lite.train.partition import karmarkar_karp
from tests.rollout.helpers import make_sample
from tests.train.helpers import joined
from tests.train.helpers import make_sample as make_turns

TOKENS = Flops(per_token=1.0, per_pair=0.0)


def prefixes(samples: list[Sample]) -> int:
    """Tokens of the tree, found token by token."""
    return len({tuple(sample.tokens[: end + 1].tolist()) for sample in samples for end in range(len(sample))})


def session(seed: int) -> list[Sample]:
    """What an agent that retries and forks fans out to: 100 tokens of prompt, then branches of three turns."""
    random = np.random.default_rng(seed)
    trunk = make_turns(random, prompt=100, turns=3)
    ends = np.flatnonzero(np.diff(trunk.loss_mask.astype(int)) == -1) + 1
    branches = []
    for end in (trunk.prompt_length, *ends.tolist()):
        more = make_turns(random, prompt=0 if end == trunk.prompt_length else 4, turns=2)
        branches.append(joined(trunk, more, at=end))
    return [trunk, *branches]


def dealt(families: list[list[Sample]], *, ranks: int, **options: object) -> list[list[list[Sample]]]:
    samples = list(chain.from_iterable(families))
    numbers = [number for number, family in enumerate(families) for _ in family]
    asked = Algorithm(**({"use_dynamic_batch_size": True} | options))  # type: ignore[arg-type]
    records = [sample.record() for sample in samples]
    plan = micro_batches(records, numbers, ranks=ranks, options=asked, flops=TOKENS)
    assert sorted(chain.from_iterable(chain.from_iterable(plan))) == list(range(len(samples)))
    return [[[samples[index] for index in micro_batch] for micro_batch in rank] for rank in plan]


def test_records_know_what_the_branches_of_a_session_share() -> None:
    samples = session(0)
    exact, tokens = prefixes(samples), sum(map(len, samples))
    assert exact < tokens / 2
    [[micro_batch]] = dealt([samples], ranks=1, max_tokens_per_gpu=exact)
    assert len(micro_batch) == len(samples)
    apart = dealt([samples], ranks=1, max_tokens_per_gpu=exact, disable_tree_training=True)
    assert len(apart[0]) > 1


def test_a_family_larger_than_the_budget_is_split_by_its_branches() -> None:
    samples = session(1)
    for budget in (150, 200, 250):
        [rank] = dealt([samples], ranks=1, max_tokens_per_gpu=budget)
        assert all(prefixes(micro_batch) <= budget for micro_batch in rank)
        assert len(rank) < len(samples)


def test_rollouts_of_a_prompt_share_it() -> None:
    random = np.random.default_rng(3)
    prompt = make_turns(random, prompt=80, turns=0)
    rollouts = []
    for _ in range(8):
        more = make_turns(random, prompt=0, turns=1)
        rollouts.append(joined(prompt, more, at=len(prompt)))
    [[micro_batch]] = dealt([rollouts], ranks=1, max_tokens_per_gpu=80 + 8 * 12)
    assert len(micro_batch) == 8


def test_one_family_keeps_all_ranks_busy() -> None:
    plan = dealt([session(seed) for seed in range(2)], ranks=4, max_tokens_per_gpu=10_000)
    assert all(map(len, plan))


def test_families_stay_together_where_there_are_enough() -> None:
    families = [session(seed) for seed in range(12)]
    plan = dealt(families, ranks=2, max_tokens_per_gpu=300)
    for family in families:
        mine = {id(sample) for sample in family}
        homes = {
            (rank, at)
            for rank, bundles in enumerate(plan)
            for at, bundle in enumerate(bundles)
            if mine & {id(sample) for sample in bundle}
        }
        assert len(homes) == 1


def test_equal_digests_mean_equal_tokens_and_equal_experts() -> None:
    plain = make_sample(6, 2)
    assert [prefix.length for prefix in plain.record().prefixes] == [4, 6]
    other = make_sample(6, 3)
    assert plain.record().prefixes[-1] == other.record().prefixes[-1]
    rows = np.zeros((5, 2, 2), np.uint8)
    plain.routed_experts = rows
    other.routed_experts = rows.copy()
    other.routed_experts[4] = 1
    assert plain.record().prefixes[0].digest != other.record().prefixes[0].digest
    longer = make_sample(9, 5)
    longer.routed_experts = np.zeros((8, 2, 2), np.uint8)
    assert longer.record().prefixes[0] == plain.record().prefixes[0]


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 100), max_size=40), st.integers(1, 6))
def test_parts_differ_by_at_most_the_largest_number(costs: list[float], parts: int) -> None:
    lists = karmarkar_karp(costs, parts)
    assert sorted(chain.from_iterable(lists)) == list(range(len(costs)))
    sums = [sum(costs[index] for index in own) for own in lists]
    assert max(sums) - min(sums) <= max(costs, default=0.0) + 1e-9


def test_differencing_beats_the_longest_first() -> None:
    sums = [sum((8, 7, 6, 5, 4)[index] for index in part) for part in karmarkar_karp([8, 7, 6, 5, 4], 2)]
    assert sorted(sums) == [14, 16]


def test_flops_are_those_of_the_weights_a_token_passes() -> None:
    dense = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    dense |= {"head_dim": 16, "intermediate_size": 128, "vocab_size": 512}
    each = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    assert flops(dense) == Flops(per_token=6.0 * (2 * each + 64 * 512), per_pair=12.0 * 2 * 64)
    sparse = flops(dense | {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 8})
    assert flops({"n_embd": 64}) == Flops(per_token=1.0, per_pair=0.0)
    assert sparse.per_token == 6.0 * (2 * (each - 3 * 64 * 64) + 64 * 512)
