from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.sample import NOT_SAMPLED, Sample, Status
from miles_lite.session.errors import ApiError
from miles_lite.session.history.tree import Tree
from miles_lite.session.samples.collect import Plan, collect
from miles_lite.session.samples.sample_file import decode_samples, encode_samples
from miles_lite.session.samples.sample_hooks import SampleHook
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
    assert (sample.prompt_length, len(sample), sample.status) == (2, 8, Status.COMPLETED)
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


def test_what_is_asked_again_is_independent_unless_it_is_a_retry() -> None:
    tree = new_tree()
    grow(tree, [A], "one", at=0.0)
    grow(tree, [A], "two", at=0.5)
    grow(tree, [A], "three", at=5.0, first=200)
    assert len(collect(tree)) == 3
    grow(tree, [A], "four", at=9.0, first=300, retries=2)
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [0, 1, 3]
    grow(tree, [A, said("three"), B], "deeper", at=10.0)
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [0, 1, 3, 4]


def test_a_retry_that_went_on_still_supersedes() -> None:
    tree = new_tree()
    grow(tree, [A], "one", at=0.0)
    grow(tree, [A], "two", at=5.0, retries=0)
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
    assert len(sample) - sample.prompt_length == 3


def test_the_leaf_says_how_the_sample_ended() -> None:
    for finish, status in (("length", Status.TRUNCATED), ("abort", Status.ABORTED), ("stop", Status.COMPLETED)):
        tree = new_tree()
        grow(tree, [A], "one", finish=finish)
        assert collect(tree)[0].status is status


@pytest.mark.parametrize(
    ("then", "cut"),
    [
        ([A, said("on"), B], []),  # goes on from what was cut
        ([A, said("o n"), B], []),  # the same, in other words, and so as a new root
        ([A], []),  # asks again
        ([{"role": "system", "content": "another"}, B], [0]),  # another agent
    ],
)
def test_a_conversation_that_went_on_after_a_cut_turn_is_not_cut(then: list[dict[str, Any]], cut: list[int]) -> None:
    tree = new_tree()
    grow(tree, [A], "on", finish="length", at=0.0)
    grow(tree, then, "done", at=2.0, first=200)
    assert [sample.metadata["leaf"] for sample in collect(tree) if sample.record().ends_cut] == cut


def test_parallel_and_last_turns_that_are_cut_count() -> None:
    tree = new_tree()
    grow(tree, [A], "on", finish="length", at=0.0)
    grow(tree, [A], "no", finish="length", at=0.5)
    assert [sample.record().ends_cut for sample in collect(tree)] == [True, True]
    assert [sample.record().ends_cut for sample in collect(tree, max_seq_len=4)] == [True, True]


def test_a_cut_before_anything_sampled_leaves_no_sample() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=5, size=2)
    assert collect(tree, max_seq_len=5) == []
    assert collect(tree, max_seq_len=6)[0].status is Status.TRUNCATED
    assert len(collect(tree)[0]) == 7


def _three_turns(last: int) -> Tree:
    """Contexts of 100, 180 and 260 tokens; the last output has `last` of them."""
    tree = new_tree()
    grow(tree, [A], "one", prompt=60, size=40)
    grow(tree, [A, said("one"), B], "two", prompt=40, size=40)
    grow(tree, [A, said("one"), B, said("two"), C], "three", prompt=80 - last, size=last)
    return tree


def test_the_turn_that_crosses_the_limit_is_cut_within_its_output_or_left_out() -> None:
    (cut,) = collect(_three_turns(40), max_seq_len=230)
    assert (len(cut), cut.status, cut.metadata["turns"]) == (230, Status.TRUNCATED, 3)
    assert list(cut.loss_mask[-11:]) == [0] + [1] * 10
    (left_out,) = collect(_three_turns(25), max_seq_len=230)
    assert (len(left_out), left_out.status, left_out.metadata["turns"]) == (180, Status.COMPLETED, 2)
    assert left_out.trained_tokens == 80
    assert collect(_three_turns(40), max_seq_len=60) == []


def test_leaves_that_a_cut_makes_equal_are_one_sample() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=2)
    grow(tree, [A, said("one"), B], "two", prompt=5, size=2)
    grow(tree, [A, said("one"), C], "three", prompt=5, size=2)
    (sample,) = collect(tree, max_seq_len=6)
    assert (len(sample), sample.trained_tokens, sample.metadata["turns"]) == (3, 2, 1)


def test_a_stop_token_that_one_path_drops_is_trained_where_it_stays() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=3)
    grow(tree, [A, said("one"), B], "two", prompt=1, size=1, drop=1)
    grow(tree, [A, said("one"), C], "three", prompt=1, size=1)
    first, second = collect(tree)
    assert list(first.loss_mask) == [0, 1, 1, 0, 1]
    assert list(second.loss_mask) == [0, 0, 0, 1, 0, 1]


def test_a_line_gives_its_end_only() -> None:
    tree = new_tree()
    grow(tree, [A], "one", at=0.0)
    grow(tree, [A, said("one"), B], "two", at=2.0)
    grow(tree, [A, said("one"), C], "three", at=4.0)
    assert [sample.metadata["leaf"] for sample in collect(tree, Plan(linear=True))] == [2]
    assert [sample.metadata["leaf"] for sample in collect(tree)] == [1, 2]


def _hook(function: Any) -> SampleHook:
    return SampleHook("--session-sample-picker-path", "my.pick", function)


def test_a_picker_chooses_among_all_leaves_and_a_shared_turn_is_trained_with_what_it_chose() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=2, at=0.0)
    grow(tree, [A, said("one"), B], "two", prompt=1, size=2, at=2.0)
    grow(tree, [A, said("one"), B], "three", prompt=1, size=2, at=4.0)
    seen: list[Any] = []

    def pick(samples: list[Sample], metadata: dict[str, Any]) -> list[Sample]:
        seen.append(([sample.trained_tokens for sample in samples], metadata))
        return samples[1:]

    (sample,) = collect(tree, Plan(picker=_hook(pick)), metadata={"session_id": "x"})
    assert seen == [([4, 4], {"session_id": "x"})]
    assert (sample.metadata["leaf"], sample.trained_tokens, sample.metadata["session_id"]) == (2, 4, "x")


def test_a_postprocessor_has_the_last_word() -> None:
    tree = new_tree()
    grow(tree, [A], "one", prompt=1, size=2)

    def halve(samples: list[Sample], metadata: dict[str, Any]) -> list[Sample]:
        return [sample.truncate(2) for sample in samples]

    (sample,) = collect(tree, Plan(postprocessor=_hook(halve)))
    assert len(sample) == 2
    assert len(collect(tree)[0]) == 3


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda samples, metadata: 1 / 0, "raised ZeroDivisionError"),
        (lambda samples, metadata: None, "returned NoneType, not a list of samples"),
        (lambda samples, metadata: samples * 2, "not given, or one of them twice"),
        (lambda samples, metadata: [replace(samples[0])], "not given, or one of them twice"),
    ],
)
def test_a_hook_that_fails_is_a_422_with_its_name(function: Any, what: str) -> None:
    tree = new_tree()
    grow(tree, [A], "one")
    with pytest.raises(ApiError, match=f"--session-sample-picker-path my.pick .*{what}") as failed:
        collect(tree, Plan(picker=_hook(function)))
    assert (failed.value.status, failed.value.code) == (422, "sample_hook_failed")
    spoilt = _hook(lambda samples, metadata: [replace(samples[0], logprobs=samples[0].logprobs[1:])])
    with pytest.raises(ApiError, match="cannot be trained: sample 0: logprobs"):
        collect(tree, Plan(postprocessor=spoilt))


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
        full, size = whole[sample.metadata["leaf"]], len(sample)
        assert size <= limit
        assert sample.weight_versions[-1] != NOT_SAMPLED
        assert np.array_equal(sample.tokens, full.tokens[:size])
        assert np.array_equal(sample.loss_mask, full.loss_mask[:size])


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
