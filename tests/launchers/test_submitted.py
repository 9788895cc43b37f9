"""What `ray job submit` makes of a command: its own words, whatever sh would read in them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REPO = Path(__file__).parents[2]
SCRIPT = 'set -euo pipefail; source "$0/launchers/common.sh"; submitted "$@"; printf "%s\\0" "${SUBMITTED[@]}"; env -0'


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text(st.sampled_from("ab/$'\"\\` \n*[];&(){}#~!-"), min_size=1, max_size=8), max_size=4))
def test_a_job_runs_the_words_that_it_is_given(words: list[str]) -> None:
    _run(words)


@pytest.mark.parametrize(
    "words",
    [["/a/b", "1e-6"], ['/my models/it\'s "q" $HOME/m', '{"a": "$(touch /no)"}'], ["for i in 1 2; do echo $i; done"]],
)
def test_known_words(words: list[str]) -> None:
    _run(words)


def _run(words: list[str]) -> None:
    given = ["printf", "%s=", "x", *words]
    made = subprocess.run(["bash", "-c", SCRIPT, str(REPO), *given], capture_output=True, text=True, check=True).stdout
    parts = made.split("\0")[:-1]
    held = [each for each in parts if each.startswith("MILES_LITE_ENTRYPOINT=")]
    submitted = parts[: 2 if held else len(given)]
    line = subprocess.list2cmdline(submitted)  # as Ray's command line does; its job runs the line with sh
    environment = os.environ | dict(each.split("=", 1) for each in held)
    ran = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "".join(f"{word}=" for word in given[2:])
