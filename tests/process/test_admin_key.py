from __future__ import annotations

import pytest

from miles_lite.process.admin_key import VARIABLE, admin_key, announced, authorizes, bearer, key_of, known_key


def test_servers_on_loopback_have_no_key_and_others_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "known")
    assert admin_key("127.0.0.1", "given") is None
    assert admin_key("0.0.0.0", "given", known_key()) == "given"
    assert admin_key("0.0.0.0", None, known_key()) == "known"
    assert announced("given", "given") == announced("known", None, "known") == announced(None) == ""


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_given_key_one_is_made_up_and_told(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    key = admin_key("10.0.0.1")
    assert key is not None
    assert len(key) > 20
    assert key != admin_key("10.0.0.1")
    assert key in announced(key)
    assert known_key() is None
    assert announced(key, None, known_key())


def test_a_key_is_shown_as_a_bearer_token_or_as_x_api_key() -> None:
    assert authorizes(bearer("käse"), "käse")
    assert key_of({"Authorization": "bEARER  k "}) == key_of({"X-Api-Key": "k"}) == "k"
    undecodable = {"Authorization": "Bearer \udcff"}  # as a server reads the byte 0xff
    for headers in (bearer(None), bearer("other"), {"Authorization": "k"}, {"Authorization": "Basic k"}, undecodable):
        assert not authorizes(headers, "k")
