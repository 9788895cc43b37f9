from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.session.errors import ApiError
from miles_lite.session.history.agent_identity import agent_name, caller_of
from tests.session.engine import STOP, answer, bench
from tests.session.trees import NOBODY, grow, new_tree, said, user

HELLO = [user("hello")]


def test_an_agents_name_comes_from_the_header_or_the_metadata() -> None:
    assert agent_name({"X-Agent-Name": "h"}, {"metadata": {"agent": "m"}}) == "h"
    assert agent_name({}, {"metadata": {"agent": "m", "agent_name": "n"}}) == "m"
    assert agent_name({}, {"metadata": {"agent_name": "n", "user_id": 3}}) == "n"
    for body in ({}, {"metadata": None}, {"metadata": "x"}, {"metadata": {"agent": ""}}):
        assert agent_name({}, body) is None
    for name in (3, "x" * 201, ["a"]):
        with pytest.raises(ApiError) as refused:
            agent_name({}, {"metadata": {"agent": name}})
        assert (refused.value.status, refused.value.param) == (400, "metadata.agent")


def test_callers_differ_by_name_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    seeds = {caller_of(name, shown).seed for name in (None, "a", "b") for shown in (None, tools)}
    assert len(seeds) == 6
    assert caller_of("a", []).seed == caller_of("a", None).seed


def test_agents_of_different_names_share_no_turn() -> None:
    tree, other = new_tree(), caller_of("other", None)
    mine = grow(tree, HELLO, "hi")
    theirs = grow(tree, HELLO, "hi", caller=other)
    more = [*HELLO, said("hi"), *HELLO]
    assert tree.attach(more, NOBODY).turn is mine
    assert tree.attach(more, other).turn is theirs
    assert tree.attach(more, caller_of("third", None)).turn is None


async def test_names_reach_the_tree_through_every_dialect(tiny_model: Path) -> None:
    async def post(url: str, body: dict[str, Any], **headers: str) -> int:
        async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=body) as response:
            return response.status

    async with bench(tiny_model, lambda body: answer([7, STOP])) as b:
        session = await b.client.create()
        url = b.client.base_url(session)
        by_header: Any = {"X-Agent-Name": "one"}
        assert await post(f"{url}/chat/completions", {"messages": HELLO}, **by_header) == 200
        assert await post(f"{url}/responses", {"input": "hello", "metadata": {"agent": "two"}}) == 200
        asked = {"messages": HELLO, "max_tokens": 9, "metadata": {"agent_name": "three"}}
        assert await post(f"{url}/messages", asked) == 200
        assert await post(f"{url}/chat/completions", {"messages": HELLO, "metadata": {"agent": 4}}) == 400
        assert b.server.service is not None
        assert [turn.caller.name for turn in (await b.server.service.tree(session)).turns] == [
            "one",
            "two",
            "three",
        ]
