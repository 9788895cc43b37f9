"""Which trajectories say a text: what was said counts, not how it is written down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.report.index import Filter, Index
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.report.search import Search
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory
from tests.report.runs import write_run

ODD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(
    ['"', "\\", "\\n", "ü", "\x00", "1"]
)


def kept(run: Path, step: int, rollout: int, *, said: str, reasoning: str = "", arguments: str = "") -> Path:
    answer = {
        "role": "assistant",
        "content": said,
        "turn": 0,
        "parent": None,
        "output_ids": [1],
        "output_logprobs": [-1.0],
    }
    answer |= {"reasoning": reasoning, "tool_call": {"name": "bash", "arguments_json": arguments}}
    path = trajectory_path(run, step, rollout)
    atraj.write(Trajectory({"format": "atraj", "version": 1, "leaves": [0], "steps": [answer]}), path)
    return path


@given(said=ODD, asked=ODD)
def test_it_says_what_python_finds_in_it(tmp_path_factory: pytest.TempPathFactory, said: str, asked: str) -> None:
    run = tmp_path_factory.mktemp("run")
    kept(run, 0, 7, said="none of it", reasoning=f"so {said} it is")
    found = Search(run).containing(asked)
    assert found == ([(0, 7)] if asked in f"so {said} it is" or asked in "none of it" else [])


@pytest.mark.parametrize("asked", ["output_ids", "assistant", "bash", "-1.0", "atraj"])
def test_how_it_is_written_down_is_not_what_is_said(asked: str, tmp_path: Path) -> None:
    kept(tmp_path, 0, 0, said="hello", arguments='{"command": "ls -la"}')
    search = Search(tmp_path)
    assert search.containing(asked) == []
    assert search.containing('"command": "ls') == search.containing("hell") == [(0, 0)]


def test_what_is_new_changed_or_gone_is_seen_and_the_rest_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (kept(tmp_path, 0, number, said="hello") for number in (1, 2))
    search, read = Search(tmp_path), list[str]()
    reading = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return reading(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert sorted(search.containing("hello")) == [(0, 1), (0, 2)]
    assert sorted(search.containing("hello")) == [(0, 1), (0, 2)]
    assert len(read) == 2
    first.unlink()
    kept(tmp_path, 0, 2, said="bye")
    os.utime(second, ns=(1, 1))
    kept(tmp_path, 1, 3, said="hello again")
    (tmp_path / "trajectories" / "x-1.atraj").write_text("hello")
    (tmp_path / "trajectories" / "000009-00000009.atraj").write_text('{"hello": 1}')
    assert search.containing("hello") == [(1, 3)]


def test_a_question_with_a_text_reads_the_steps_that_say_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, seed=1, steps=5)
    for step, rollout in ((1, 40), (4, 130), (4, 131)):
        kept(run, step, rollout, said="hello")
    find = Index(run).find
    assert [(row["step"], row["rollout"]) for row in find(Filter(text="hello"))] == [(4, 130), (4, 131), (1, 40)]
    assert [row["rollout"] for row in find(Filter(text="hello", step=4, offset=1))] == [131]
    assert [row["rollout"] for row in find(Filter(text="hello", step=2))] == []
    assert find(Filter(text="bye")) == []
