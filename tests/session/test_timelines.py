"""Timeline merging: the cases that comparing the text of finished timelines gets wrong, each with the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from miles_lite.config.session_options import Session
from miles_lite.sample import Sample, Status
from miles_lite.session.history.agent_identity import Caller, caller_of
from miles_lite.session.history.forks import all_forks, report
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.history.turn_record import Output, Turn, pack_spans, pack_tokens
from miles_lite.session.samples.collect import Plan, collect
from miles_lite.session.samples.timelines import Merging, merge
from miles_lite.tito import Suffix
from miles_lite.tito.chat_messages import Message
from tests.session.trees import NOBODY, fingerprint, new_tree, said, user

S: dict[str, Any] = {"role": "system", "content": "s"}
U1, U2, U3 = user("u1"), user("u2"), user("u3")
EOS = 2
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def turn(
    tree: Tree,
    messages: list[dict[str, Any]],
    reply: str | dict[str, Any],
    prompt: list[int],
    ids: list[int],
    *,
    root: bool = False,
    caller: Caller = NOBODY,
    at: float | None = None,
    retries: int | None = None,
) -> Turn:
    """A turn with these ids, as a root of its own where `root` says so; turns follow one another in time."""
    place = Place(None, 0, caller, "role") if root else tree.attach(messages, caller)
    began = 2.0 * len(tree.turns) if at is None else at
    stop = EOS if ids[-1] == EOS else None
    return tree.commit(
        place,
        messages[place.matched :],
        reply=said(reply) if isinstance(reply, str) else reply,
        prompt_ids=np.array(prompt, np.int32),
        drop=0,
        output=Output(
            token_bytes=pack_tokens(ids, [-0.5] * len(ids)),
            span_bytes=pack_spans([(1, 0, len(ids))]),
            finish_reason="stop" if stop else "length",
            stop=stop,
            started=began,
            finished=began + 1.0,
        ),
        retries=retries,
    )


def suffix(*ids: int) -> Any:
    """Appending that always gives these ids."""

    def append(history: Sequence[Message], messages: Sequence[Message], stop: int | None, caller: Caller) -> Suffix:
        return Suffix(np.array(ids, np.int32))

    return append


def gathered(tree: Tree, **merging: Any) -> list[Sample]:
    return collect(tree, Plan(merging=Merging(**merging)))


def shown(sample: Sample) -> list[tuple[int, int]]:
    return list(zip(sample.tokens.tolist(), sample.loss_mask.tolist(), strict=True))


def drifted() -> Tree:
    """The second request came back with 9 where 7, 8 had been sampled."""
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, 8, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 9, EOS, 12], [5, EOS], root=True)
    return tree


def test_1_a_linear_conversation_is_one_sample_with_both_replies_trained() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS], root=True)
    before = fingerprint(tree)
    (sample,) = gathered(tree)
    assert shown(sample) == [(10, 0), (11, 0), (7, 1), (EOS, 1), (12, 0), (5, 1), (EOS, 1)]
    assert (sample.metadata["merged"], sample.metadata["turns"]) == (1, 2)
    assert "merged_offcontext" not in sample.metadata
    assert fingerprint(tree) == before


def test_2_by_text_what_was_sampled_takes_the_place_of_its_re_encoding() -> None:
    (sample,) = gathered(drifted(), level="text", append=suffix(12))
    assert shown(sample) == [(10, 0), (11, 0), (7, 1), (8, 1), (EOS, 1), (12, 0), (5, 1), (EOS, 1)]
    assert sample.metadata["merged_offcontext"] == [[6, 8]]
    assert sample.off_context.tolist() == [False] * 6 + [True] * 2
    assert sample.truncate(7).off_context.tolist() == [False] * 6 + [True]


def test_2_what_follows_an_off_context_turn_is_off_context_too() -> None:
    tree = drifted()
    turn(tree, [S, U1, said("a"), U2, said("b"), U3], "c", [13], [6, EOS])
    (sample,) = gathered(tree, level="text", append=suffix(12))
    assert sample.metadata["merged_offcontext"] == [[6, 8], [9, 11]]


def test_2_a_reply_that_followed_other_ids_is_never_moved() -> None:
    for unproved in (suffix(13), lambda history, messages, stop, caller: None, None):
        assert len(gathered(drifted(), level="text", append=unproved)) == 2
    assert len(gathered(drifted(), level="text", append=suffix(12), fix_drift=False)) == 2


def test_3_by_token_a_drifted_timeline_stays_apart() -> None:
    first, second = gathered(drifted(), append=suffix(12))
    assert shown(first) == [(10, 0), (11, 0), (7, 1), (8, 1), (EOS, 1)]
    assert shown(second) == [(10, 0), (11, 0), (9, 0), (EOS, 0), (12, 0), (5, 1), (EOS, 1)]


def test_4_the_earlier_absorbs_the_later_as_the_later_the_earlier() -> None:
    tree = new_tree()
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS])
    turn(tree, [S, U1], "a", [10, 11], [7, EOS], root=True)
    (sample,) = gathered(tree)
    assert shown(sample) == [(10, 0), (11, 0), (7, 1), (EOS, 1), (12, 0), (5, 1), (EOS, 1)]


def test_4_a_turn_that_is_asked_again_and_says_the_same_ids_counts_once() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [12], [5, EOS])
    turn(tree, [S, U1], "a", [10, 11], [7, EOS], root=True)
    (sample,) = gathered(tree)
    assert sample.trained_tokens == 4
    turn(tree, [S, U1], "other", [10, 11], [8, EOS], root=True)
    assert [sample.trained_tokens for sample in gathered(tree)] == [4, 2]


@pytest.mark.parametrize(("ignore", "samples"), [(False, 2), (True, 1)])
def test_5_timelines_with_other_tools_stay_apart_unless_told_otherwise(ignore: bool, samples: int) -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 99, 7, EOS, 12], [5, EOS], root=True, caller=caller_of(None, TOOLS))
    made = gathered(tree, level="text", append=suffix(12), ignore_tools=ignore)
    assert len(made) == samples
    assert [("merged_offcontext" in sample.metadata) for sample in made] == [ignore] * samples


def test_6_of_a_request_and_its_retry_the_latest_stays_and_of_two_that_are_alike_both() -> None:
    for retries, kept in ((0, [[8, EOS]]), (None, [[7, EOS], [8, EOS]])):
        tree = new_tree()
        turn(tree, [S, U1], "a", [10, 11], [7, EOS])
        turn(tree, [S, U1], "a", [10, 11], [8, EOS], retries=retries)
        assert [sample.tokens[sample.loss_mask == 1].tolist() for sample in gathered(tree)] == kept


def test_7_of_two_children_one_trains_what_they_share() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS], root=True)
    turn(tree, [S, U1, said("a"), U3], "c", [10, 11, 7, EOS, 13], [6, EOS], root=True)
    first, second = gathered(tree)
    assert shown(first) == [(10, 0), (11, 0), (7, 1), (EOS, 1), (12, 0), (5, 1), (EOS, 1)]
    assert shown(second) == [(10, 0), (11, 0), (7, 0), (EOS, 0), (13, 0), (6, 1), (EOS, 1)]


def test_8_a_reply_is_trained_where_it_was_sampled_though_its_context_was_cleaned_up() -> None:
    tree, error = new_tree(), user("error: try again")
    turn(tree, [S, U1], "bad", [10, 11], [6, EOS])
    turn(tree, [S, U1, said("bad"), error], "good", [14], [7, EOS])
    turn(tree, [S, U1, said("good"), U2], "next", [10, 11, 7, EOS, 12], [5, EOS])
    first, second = gathered(tree, level="text", append=suffix(12))
    assert shown(first) == [(10, 0), (11, 0), (6, 1), (EOS, 1), (14, 0), (7, 1), (EOS, 1)]
    assert shown(second) == [(10, 0), (11, 0), (7, 0), (EOS, 0), (12, 0), (5, 1), (EOS, 1)]


def _calling(name: str, call_id: str = "c1", content: str = "") -> dict[str, Any]:
    function = {"name": name, "arguments": "{}"}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def test_9_empty_replies_with_other_tool_calls_are_not_the_same() -> None:
    tree = new_tree()
    turn(tree, [S, U1], _calling("f"), [10, 11], [7, EOS])
    turn(tree, [S, U1, _calling("g"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS], root=True)
    assert len(gathered(tree, level="text", append=suffix(12))) == 2


def test_10_roles_are_compared() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, {**U1, "role": "tool"}, said("a"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS], root=True)
    assert len(gathered(tree, level="text", append=suffix(12))) == 2


def test_11_a_turn_that_was_cut_never_trains_an_end_it_did_not_sample() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, 8])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, 8, EOS, 12], [5, EOS], root=True)
    exact = [(10, 0), (11, 0), (7, 1), (8, 1), (EOS, 0), (12, 0), (5, 1), (EOS, 1)]
    (sample,) = gathered(tree)
    assert shown(sample) == exact
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, 8])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 9, EOS, 12], [5, EOS], root=True)
    (sample,) = gathered(tree, level="text", append=suffix(EOS, 12))
    assert shown(sample) == exact


def test_12_agents_of_different_names_stay_apart() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS], caller=caller_of("one", None))
    more = [S, U1, said("a"), U2]
    turn(tree, more, "b", [10, 11, 7, EOS, 12], [5, EOS], root=True, caller=caller_of("two", None))
    assert len(gathered(tree, level="text", append=suffix(12), ignore_tools=True)) == 2
    assert [sample.metadata["agent"] for sample in gathered(tree)] == ["one", "two"]


@pytest.mark.parametrize("changed", [{"tool_call_id": "c9"}, {"name": "other"}])
def test_13_tool_call_ids_and_names_are_compared(changed: dict[str, str]) -> None:
    tree = new_tree()
    result = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "ok"}
    turn(tree, [S, U1], _calling("f"), [10, 11], [7, EOS])
    turn(tree, [S, U1, _calling("f"), result], "b", [12], [5, EOS])
    again = [S, U1, _calling("f"), {**result, **changed}, said("b"), U2]
    turn(tree, again, "c", [10, 11, 7, EOS, 12, 5, EOS, 13], [6, EOS], root=True)
    first, second = gathered(tree)
    assert (first.metadata["turns"], second.metadata["turns"]) == (2, 2)
    assert second.loss_mask.tolist() == [0] * 8 + [1, 1]
    other = turn(tree, [S, U1, _calling("f", "c2"), U2], "d", [10, 11, 7, EOS, 12], [4, EOS], root=True)
    assert other.number not in merge(tree, Merging()).moved


def test_14_a_conversation_may_begin_with_any_role_and_have_system_messages_later() -> None:
    tree = new_tree()
    turn(tree, [U1], "a", [10], [7, EOS])
    turn(tree, [U1, said("a"), S, U2], "b", [10, 7, EOS, 11, 12], [5, EOS], root=True)
    (sample,) = gathered(tree)
    assert sample.trained_tokens == 4


def test_15_a_message_of_several_parts_is_one_message() -> None:
    tree = new_tree()
    parts = {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "1"}]}
    turn(tree, [S, parts], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, EOS, 12], [5, EOS], root=True)
    (sample,) = gathered(tree)
    assert sample.metadata["turns"] == 2


def test_16_a_timeline_longer_than_the_prompt_is_no_host() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7], [5, EOS], root=True)
    assert len(gathered(tree)) == 2


def test_17_no_timeline_is_dropped_however_many_there_are() -> None:
    tree = new_tree()
    for number in range(40):
        turn(tree, [S, user(f"u{number}")], "a", [10, number + 100], [7, EOS], root=True)
    assert len(gathered(tree)) == 40


def test_18_every_sample_is_of_its_own_length_and_status() -> None:
    tree = drifted()
    turn(tree, [S, U1, said("a"), U2, said("b"), U3], "c", [13], [6, 6])
    first, second = gathered(tree)
    assert (first.status, second.status) == (Status.COMPLETED, Status.TRUNCATED)
    assert (first.trained_tokens, second.trained_tokens) == (3, 4)


def test_19_what_does_not_merge_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    later = turn(tree, [S, U1, said("changed"), U2], "b", [10, 11, 9, EOS, 12], [5, EOS])
    report("session", tree, later)
    assert "reason=reply" in caplog.text
    assert [(fork["message"], fork["field"]) for fork in all_forks(tree)] == [(2, "content")]


def test_20_ids_that_look_like_headers_or_ends_are_ids() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [10, 11, EOS, 10, 11])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 10, 11, EOS, 10, 11, EOS, 12], [EOS], root=True)
    (sample,) = gathered(tree)
    assert sample.loss_mask.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 1]


def test_a_stop_token_that_the_template_replaced_leaves_with_the_merge() -> None:
    tree = new_tree()
    turn(tree, [S, U1], "a", [10, 11], [7, EOS])
    turn(tree, [S, U1, said("a"), U2], "b", [10, 11, 7, 3, 12], [5, EOS], root=True)
    (sample,) = gathered(tree)
    assert shown(sample) == [(10, 0), (11, 0), (7, 1), (3, 0), (12, 0), (5, 1), (EOS, 1)]


def test_a_chain_of_roots_is_one_sample_and_its_cut_keeps_everything_aligned() -> None:
    tree, messages, prompt = new_tree(), [S], [10]
    for number in range(6):
        messages, prompt = [*messages, user(f"u{number}")], [*prompt, 20 + number]
        turn(tree, messages, f"r{number}", prompt, [40 + number, EOS], root=True)
        messages, prompt = [*messages, said(f"r{number}")], [*prompt, 40 + number, EOS]
    (sample,) = gathered(tree)
    assert sample.tokens.tolist() == prompt
    assert (sample.metadata["merged"], sample.trained_tokens) == (5, 12)
    (cut,) = collect(tree, max_seq_len=9)
    assert (cut.tokens.tolist(), cut.status) == (prompt[:9], Status.TRUNCATED)


def test_the_flags_of_merging_reach_it() -> None:
    def append(*_: Any) -> None:
        raise AssertionError("not called")

    def merging(**flags: Any) -> Merging:
        return Plan.of(Session(**flags), append).merging

    assert merging() == Merging(level="token", ignore_tools=False, fix_drift=True, append=append)
    given = merging(timeline_compare_level="text", timeline_ignore_tools=True, fix_retokenization_drift=False)
    assert given == Merging(level="text", ignore_tools=True, fix_drift=False, append=append)
