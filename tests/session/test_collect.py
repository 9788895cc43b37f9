from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.sample import NOT_SAMPLED, Sample, Status
from miles_lite.session.codec import decode_samples, encode_samples
from miles_lite.session.collect import collect
from miles_lite.session.tree import Tree
from tests.session.trees import grow, new_tree, said, user

A, B, C = user("a"), user("b"), user("c")


def test_a_linear_session_is_one_sample() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=2, size=3, version=4, temperature=0.7)
    grow(tree, [A, said("one"), B], "two", prompt=1, size=2, version=5, temperature=0.7)
    (sample,) = collect(tree)
    assert list(sample.tokens) == [0, 1, 100, 101, 102, 0, 100, 101]
    assert list(sample.loss_mask) == [0, 0, 1, 1, 1, 0, 1, 1]
    assert list(sample.weight_versions) == [NOT_SAMPLED] * 2 + [4] * 3 + [NOT_SAMPLED] + [5] * 2
    assert sample.temperatures[2] == np.float32(0.7)
    assert sample.temperatures[0] == 1.0
    assert (sample.prompt_length, sample.response_length, sample.status) == (2, 6, Status.COMPLETED)
    assert sample.metadata["turns"] == 2


def test_a_shared_turn_is_trained_with_the_earliest_leaf_only() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=2)
    grow(tree, [A, said("one"), B], "two", prompt=1, size=2)
    grow(tree, [A, said("one"), C], "three", prompt=1, size=2)
    first, second = collect(tree)
    assert list(first.loss_mask) == [0, 1, 1, 0, 1, 1]
    assert list(second.loss_mask) == [0, 0, 0, 0, 1, 1]
    assert second.weight_versions[1] == 1
    assert second.logprobs[1] == 0.0


def test_superseded_retries_are_dropped_and_parallel_siblings_stay() -> None:
    tree = new_tree()
    grow(tree, [A], "one", at=0.0)
    grow(tree, [A], "two", at=0.5)
    assert len(collect(tree)) == 2
    grow(tree, [A], "three", at=5.0)
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [2]
    grow(tree, [A, said("two"), B], "deeper", at=6.0)
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [2, 3]


def test_a_retry_that_went_on_still_supersedes() -> None:
    tree = new_tree()
    grow(tree, [A], "one", at=0.0)
    grow(tree, [A], "two", at=5.0)
    grow(tree, [A, said("two"), B], "more", at=7.0)
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [2]


def test_a_dropped_stop_token_is_trained_only_where_it_stays() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=3)
    grow(tree, [A, said("one"), B], "two", prompt=2, size=1, drop=1)
    (sample,) = collect(tree)
    assert list(sample.tokens) == [0, 100, 101, 0, 1, 100]
    assert list(sample.loss_mask) == [0, 1, 1, 0, 0, 1]


def test_greedy_turns_are_not_trained() -> None:
    tree = new_tree()
    grow(tree, [A], "one", temperature=0.0)
    (sample,) = collect(tree)
    assert sample.trained_tokens == 0
    assert sample.response_length == 3


def test_the_leaf_says_how_the_sample_ended() -> None:
    for finish, status in (("length", Status.TRUNCATED), ("abort", Status.ABORTED), ("stop", Status.COMPLETED)):
        tree = new_tree()
        grow(tree, [A], "one", finish=finish)
        assert collect(tree)[0].status is status


def test_a_cut_before_anything_sampled_leaves_no_sample() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=5, size=2)
    assert collect(tree, max_seq_len=5) == []
    assert collect(tree, max_seq_len=6)[0].status is Status.TRUNCATED
    assert len(collect(tree)[0]) == 7


def _tree(shape: list[int], sizes: list[int]) -> Tree:
    tree = new_tree()
    for number, (parent, size) in enumerate(zip(shape, sizes, strict=False)):
        history = tree.history(tree.turns[parent % len(tree.turns)]) if tree.turns and parent else []
        grow(tree, [*history, user(f"u{number}")], f"r{number}", size=size, first=1000 * number + 10, version=number)
    return tree


trees = st.builds(_tree, st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(1, 4), min_size=8, max_size=8))


@given(tree=trees)
def test_every_sampled_token_is_trained_exactly_once(tree: Tree) -> None:
    samples = collect(tree)
    trained = np.concatenate([np.empty(0, np.int32), *(s.tokens[s.loss_mask == 1] for s in samples)])
    sampled = np.concatenate([np.empty(0, np.int32), *(turn.output.ids for turn in tree.turns)])
    assert sorted(trained) == sorted(sampled)
    assert _same(collect(tree), samples)


@given(tree=trees, limit=st.integers(1, 30))
def test_cut_samples_are_prefixes(tree: Tree, limit: int) -> None:
    whole = {sample.metadata["leaf"]: sample for sample in collect(tree)}
    for sample in collect(tree, max_seq_len=limit):
        full = whole[sample.metadata["leaf"]]
        assert np.array_equal(sample.tokens, full.tokens[:limit])
        assert np.array_equal(sample.loss_mask, full.loss_mask[:limit])


@given(tree=trees)
def test_samples_survive_the_wire(tree: Tree) -> None:
    samples = collect(tree)
    for sample in samples[:1]:
        sample.routed_experts = np.ones((len(sample) - 1, 2, 3), np.uint8)
    assert _same(decode_samples(encode_samples(samples)), samples)


def _same(left: list[Sample], right: list[Sample]) -> bool:
    names = ("tokens", "loss_mask", "logprobs", "temperatures", "weight_versions", "routed_experts")
    return len(left) == len(right) and all(
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
        and (a.status, a.metadata) == (b.status, b.metadata)
        for a, b in zip(left, right, strict=True)
    )
