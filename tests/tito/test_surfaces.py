"""Every template at hand has the append surface that a person has agreed with."""

from __future__ import annotations

import pytest

from tests.tito.material import templates, tito_for
from tests.tito.surfaces import FILE, expected, line_of

TRAINABLE = ("qwen3", "qwen3_thinking", "qwen3_5", "qwen3_6", "glm", "nemotron", "minimax", "kimi_k2_5", "llama3")


@pytest.mark.parametrize("name", templates())
def test_the_surface_is_the_reviewed_one(name: str) -> None:
    found = line_of(name, tito_for(name).surface)
    assert found == expected().get(name), f"read the template, and record in {FILE.name} what it really does: {found}"


def test_the_table_names_no_template_that_is_gone() -> None:
    assert {name for name in expected() if name.startswith("trl/")} <= set(templates())


@pytest.mark.parametrize("family", TRAINABLE)
def test_tool_and_user_may_be_appended_to_the_families_that_are_trained(family: str) -> None:
    rows = [line.split() for name, line in expected().items() if name.partition("/")[2].startswith(family)]
    assert rows
    assert all(tool == user == "short" for _, _, tool, user, *_ in rows)


def test_every_refusal_names_a_law_and_says_why() -> None:
    for name in templates():
        for verdict in tito_for(name).surface.roles.values():
            assert (verdict.law is None) == (verdict.reason == "")
