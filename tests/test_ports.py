from __future__ import annotations

import ast
from pathlib import Path

from miles_lite.engine.ports import LAST
from tests.ports import free_port

TESTS = Path(__file__).parent


def test_a_free_port_is_given_once_and_never_to_an_outgoing_connection() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert max(ports) < LAST


def test_a_port_that_the_kernel_chose_is_listened_on_by_who_asked_for_it() -> None:
    """One that was let go to be used later is anybody's, also an outgoing connection's."""
    let_go = set()
    for file in TESTS.rglob("*.py"):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bind":
                asked = [ast.unparse(each) for each in node.args]
                if (
                    any(each.endswith(", 0)") for each in asked)
                    and f"{ast.unparse(node.func.value)}.listen(" not in text
                ):
                    let_go.add(f"{file.relative_to(TESTS)}:{node.lineno}")
    assert not let_go
