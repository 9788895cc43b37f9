from __future__ import annotations

import pytest

from miles_lite.verify.plan import schedule


@pytest.mark.parametrize(
    ("roles", "cycles", "letters"),
    [
        (("tool",), 1, "TRR"),
        (("tool",), 3, "TRRTRTR"),
        (("tool", "user"), 1, "TUTRRF"),
        (("tool", "user", "system"), 2, "TUTSRRTUTSRF"),
        (("tool", "system"), 1, "TSRR"),
        (("tool", "user", "system", "assistant"), 1, "TUTSRRFA"),
    ],
)
def test_the_order_of_actions(roles: tuple[str, ...], cycles: int, letters: str) -> None:
    assert "".join(action.value for action in schedule(roles, cycles=cycles)) == letters
