"""A machine that serves sandboxes: the real command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.job import ROOT, environment


@contextmanager
def serving(*flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its URL and its process, which has ended after the block."""
    argv = [sys.executable, "-m", "miles_lite", "sandboxes", *flags]
    with subprocess.Popen(argv, env=environment("sandboxes"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = next(line for line in process.stdout if line.startswith("sandboxes: "))
            yield said.split()[1], process
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """Its URL."""
    with serving(*flags) as (url, _):
        yield url
