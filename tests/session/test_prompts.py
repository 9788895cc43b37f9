"""What is kept of a prompt's text saves writing it, and never changes it."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.engine.prompt_json import Prompts
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.history.turn_record import Turn
from tests.session.trees import NOBODY, new_tree, output, said, user

growths = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=8
)
"""(which turn it follows, prompt ids, sampled ids, ids dropped of the turn before, whether its text is kept)."""


@given(growths=growths, limit=st.sampled_from([0, 20, 10_000]))
def test_a_prompt_is_the_json_of_the_ids_of_its_context(
    growths: list[tuple[int, int, int, int, bool]], limit: int
) -> None:
    tree, prompts = new_tree(), Prompts(limit)
    for after, size, sampled, dropped, kept in growths:
        parent = tree.turns[after % len(tree.turns)] if tree.turns and after else None
        drop = min(dropped, len(parent.output.ids)) if parent else 0
        suffix = np.arange(10 * len(tree.turns), 10 * len(tree.turns) + size, dtype=np.int32)
        text = prompts.write("s", parent, suffix, drop=drop)
        assert json.loads(b"[%b]" % text) == [*tree.context(parent, drop).tolist(), *suffix.tolist()]
        turn = _commit(tree, parent, suffix, sampled=sampled, drop=drop)
        if kept:
            prompts.keep("s", turn, text)


def test_texts_are_kept_within_a_bound_and_the_oldest_goes_first() -> None:
    tree, prompts = new_tree(), Prompts(limit=20)
    turn = _commit(tree, None, np.arange(3, dtype=np.int32), sampled=1)
    for name in ("a", "b", "c"):
        prompts.keep(name, turn, b"7" * 9)
    written = [prompts.write(name, turn, np.array([5], np.int32)) for name in ("a", "b", "c")]
    assert written == [b"0,1,2,100,5", b"777777777,100,5", b"777777777,100,5"]
    prompts.forget("b")
    prompts.forget("nobody")
    assert prompts.write("b", turn, np.array([5], np.int32)) == b"0,1,2,100,5"


def _commit(tree: Tree, parent: Turn | None, suffix: np.ndarray, *, sampled: int, drop: int = 0) -> Turn:
    out = output(sampled)
    return tree.commit(Place(parent, 0, NOBODY), [user("u")], reply=said("r"), prompt_ids=suffix, drop=drop, output=out)
