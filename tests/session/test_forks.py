from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miles_lite.session.history.agent_identity import caller_of
from miles_lite.session.history.forks import all_forks, fork_of
from miles_lite.session.history.tree import Place
from tests.metric_names import undocumented
from tests.session.engine import STOP, answer, bench
from tests.session.trees import NOBODY, grow, new_tree, output, said, user

S: dict[str, Any] = {"role": "system", "content": "s"}
A, B, C = user("a"), user("b"), user("c")


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([S, A, said("one"), B, said("two"), C], {}, None),
        ([S, A, said("one"), B], {}, (0, None, None, "again")),
        ([S, A, said("one"), B], {"retries": 1}, (0, None, None, "retry")),
        ([S, A, said("one"), B], {"at": 10.5}, (0, None, None, "parallel")),
        ([S, A, said("one"), C], {}, (0, 3, "content", "edit")),
        ([S, A, said("one")], {}, (0, 3, None, "shorter")),
        ([S, A, said("one"), B, said("2"), C], {}, (0, 4, "content", "reply")),
        ([S, A, said("1"), B], {}, (None, 2, "content", "reply")),
        ([S, A, said("one") | {"reasoning_content": "r"}, B], {}, (None, 2, "reasoning_content", "reply")),
        ([S, user("summary"), B], {}, (None, 1, "content", "edit")),
        ([{"role": "system", "content": "t"}, A], {}, (None, 0, "content", "system")),
        ([S, A], {"caller": caller_of("helper", None)}, (None, None, "agent", "agent")),
        ([S, A], {"caller": caller_of(None, [{"type": "function"}])}, (None, None, "tools", "tools")),
    ],
)
def test_a_fork_says_where_and_why(messages: list[dict[str, Any]], options: dict[str, Any], expected: Any) -> None:
    tree = new_tree()
    grow(tree, [S, A], "one", at=0.0)
    grow(tree, [S, A, said("one"), B], "two", at=10.0)
    fork = fork_of(tree, grow(tree, messages, "new", **{"at": 20.0, **options}))
    found = fork and (fork.parent, fork.message, fork.field, fork.reason)
    assert found == expected
    assert len(all_forks(tree)) == (expected is not None)


def test_a_root_that_changed_nothing_forked_where_what_is_known_ends() -> None:
    tree = new_tree()
    grow(tree, [S, A], "one", at=0.0)
    grow(tree, [S, A, said("one"), B], "two", at=2.0)
    for number in range(20):
        messages = (S, A, said("one"), B, said("two"), {"role": "system", "content": f"rule {number}"})
        turn = tree.commit(
            Place(None, 0, NOBODY, "role"),
            messages,
            reply=said("x"),
            prompt_ids=np.arange(3, dtype=np.int32),
            drop=0,
            output=output(at=4.0 + number),
        )
        fork = fork_of(tree, turn)
        assert fork is not None
        assert (fork.message, fork.field, fork.reason) == (5, "role", "role")
    assert [fork["reason"] for fork in all_forks(tree)] == ["role"] * 20


async def test_forks_are_counted_and_reported_on_request(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run(snap: bool) -> dict[str, Any]:
        async with bench(
            tiny_model, lambda body: answer([7, STOP]), tito_allowed_append_roles=("tool",), detect_timeline_snap=snap
        ) as b:
            session = await b.client.create()
            _, got = await b.chat(session, [S, A])
            await b.chat(session, [S, A, got["choices"][0]["message"], B])
            await b.chat(session, [S, B], metadata={"agent": "helper"})
            assert b.server.service is not None
            stats = b.server.service.stats()
            assert stats["forks"] == 2
            assert undocumented(f"session/{name}" for name in stats) == set()
            return await b.client.describe(session)

    caplog.set_level(logging.WARNING)
    quiet = await run(False)
    assert (quiet["counts"]["forks_role"], quiet["counts"]["forks_agent"]) == (1, 1)
    assert "forks" not in quiet
    assert not caplog.records
    told = await run(True)
    assert [(fork["turn"], fork["message"], fork["reason"]) for fork in told["forks"]] == [
        (1, 3, "role"),
        (2, None, "agent"),
    ]
    assert [vars(record)["fork"]["reason"] for record in caplog.records] == ["role", "agent"]
