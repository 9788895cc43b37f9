"""What is used of aiohttp's private parts is there, in a version that was tested."""

from __future__ import annotations

import aiohttp

from miles_lite.process.aiohttp_compat import TESTED, changed


def test_this_aiohttp_is_one_that_was_tested() -> None:
    assert list(changed()) == []
    assert aiohttp.__version__.startswith(TESTED), "run the router's tests, then add the version to TESTED"
