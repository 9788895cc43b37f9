"""Runs the laws of SGLang's parsers in a process of their own; see `sglang_laws.py`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
LAWS = Path(__file__).parent / "sglang_laws.py"


def test_streams_of_every_parser_add_up_to_the_plain_answer() -> None:
    _laws("10")


@pytest.mark.slow
def test_streams_of_every_parser_add_up_to_the_plain_answer_for_many_texts() -> None:
    _laws("500")


def _laws(examples: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(LAWS)]
    environment = {**os.environ, "PARITY_EXAMPLES": examples}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
