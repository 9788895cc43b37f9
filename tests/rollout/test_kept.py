"""Which trajectories a run keeps, and that keeping costs no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.errors import Where
from miles_lite.rollout import kept
from miles_lite.rollout.generate import Step
from miles_lite.rollout.kept import MOST_FAILED, Keeper, chosen
from miles_lite.rollout.recorded import Recorder
from miles_lite.sample import Group, Rollout
from miles_lite.traces import atraj
from miles_lite.traces.token_values import TokenValues
from tests.report.runs import all_rows

TURNS = {
    "model": {"name": "tiny"},
    "leaves": [0],
    "turns": [
        {
            "turn": 0,
            "parent": None,
            "messages": [{"role": "user", "content": "hello"}],
            "reply": {"content": "bye"},
            "drop": 0,
            "prompt_ids": [1, 2, 3],
            "output_ids": [4, 5],
            "output_logprobs": [-0.5, -1.5],
            "temperature": 1.0,
            "finish_reason": "stop",
            "weight_versions": [[3, 0, 2]],
        }
    ],
}


@dataclass
class Lies:
    """Where a session's turns lie; fetched at most `fetched` times."""

    fetched: int = 0

    def fetch(self) -> tuple[bytes, dict[str, object]]:
        self.fetched += 1
        return orjson.dumps(TURNS), {"input": "hello", "label": "bye"}


def a_step(groups: list[list[float | Where | None]], replaced: int = 0) -> Step:
    """Groups whose rollouts have a reward, or failed somewhere."""
    step, index = Step(), 0
    for at, ends in enumerate(groups):
        group = Group(at, {"row": at})
        for end in ends:
            rollout = Rollout(index, at, transcript=Lies())
            index += 1
            if isinstance(end, Where):
                rollout.fail(end, "why")
            else:
                rollout.reward = end
            group.rollouts.append(rollout)
        step.finished.append(group)
    for _ in range(replaced):
        lost = Rollout(index, 0, transcript=Lies())
        lost.fail(Where.TOOL, "the sandbox has gone")
        step.replaced.append(Group(0, {"row": 0}, [lost]))
        index += 1
    return step


ENDS = st.lists(st.one_of(st.floats(-1, 1), st.sampled_from(list(Where)), st.none()), min_size=1, max_size=6)


@given(st.lists(ENDS, max_size=6), st.integers(0, 3), st.integers(1, 4))
def test_failures_the_best_the_worst_and_some_are_kept(
    groups: list[list[float | Where | None]], replaced: int, some: int
) -> None:
    step = a_step(groups, replaced)
    found = chosen(step, some)
    everyone = {one.index: one for group in [*step.finished, *step.replaced] for one in group.rollouts}
    assert {index for index, one in everyone.items() if one.failure} == {
        i for i, why in found.items() if "failed" in why
    }
    rewards = [one.reward for one in everyone.values() if one.reward is not None]
    for why, value in (("best", max), ("worst", min)):
        assert [everyone[index].reward for index, reasons in found.items() if why in reasons] == (
            [value(rewards)] if rewards else []
        )
    assert sum("some" in reasons for reasons in found.values()) == min(
        some, len(rewards) - _with_reason(found, everyone)
    )
    assert found == chosen(step, some)


def _with_reason(found: dict[int, list[str]], everyone: dict[int, Rollout]) -> int:
    return sum(reasons != ["some"] and everyone[index].reward is not None for index, reasons in found.items())


def test_many_failures_of_a_step_are_bounded() -> None:
    assert len(chosen(a_step([[Where.TOOL] * 100]), 2)) == MOST_FAILED


def test_files_say_what_became_of_a_rollout_and_the_rest_is_never_fetched(tmp_path: Path) -> None:
    step = a_step([[1.0, 0.0, 0.5, 0.5, 0.5, 0.5], [0.0, 0.0], [Where.ENGINE]], replaced=1)
    lies = {one.index: one.transcript for group in step.finished for one in group.rollouts}
    keeper = Keeper(tmp_path, 1)
    taken = keeper.take(7, step)
    assert all(one.transcript is None for group in step.finished for one in group.rollouts)
    keeper.write(7, taken)
    read = [atraj.read(path).data for path in sorted((tmp_path / "trajectories").iterdir())]
    told = {one["metadata"]["rollout_index"]: (one["metadata"]["kept"], one["reward"]) for one in read}
    assert told == {
        0: (["best"], 1.0),
        1: (["worst"], 0.0),
        2: (["some"], 0.5),
        6: (["no_gradient"], 0.0),
        8: (["failed"], None),
        9: (["failed"], None),
    }
    assert read[-2]["metadata"]["failure"] == {"where": "engine", "why": "why"}
    assert {one["metadata"]["step"] for one in read} == {7}
    assert {index for index, each in lies.items() if isinstance(each, Lies) and each.fetched} == {0, 1, 2, 6, 8}
    (ids, mask, logprobs), *_ = atraj.parse(read[0]).sequences()
    assert (ids.tolist(), mask.tolist(), logprobs.tolist()) == ([1, 2, 3, 4, 5], [0, 0, 0, 1, 1], [0, 0, 0, -0.5, -1.5])


def test_a_step_that_is_done_again_has_the_files_of_the_last_time(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, 2)
    keeper.write(3, keeper.take(3, a_step([[1.0, 0.0, 0.5]])))
    keeper.write(3, keeper.take(3, a_step([[1.0]])))
    assert [path.name for path in (tmp_path / "trajectories").iterdir()] == ["000003-00000000.atraj"]


def test_zero_keeps_none(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, 0)
    assert keeper.take(0, a_step([[1.0, Where.TOOL]])) == []
    assert not keeper.keeps


def test_the_oldest_leave_once_there_are_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(tmp_path, 2)
    for step in range(6):
        keeper.write(step, keeper.take(step, a_step([[1.0, 0.0]])))
        if step == 1:
            monkeypatch.setattr(kept, "MOST_BYTES", sum(path.stat().st_size for path in tmp_path.rglob("*.atraj")) + 9)
    names = sorted(path.name[:6] for path in tmp_path.rglob("*.atraj"))
    assert names == ["000004", "000004", "000005", "000005"]


def test_what_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trajectories").write_text("in the way")
    keeper = Keeper(tmp_path, 2)
    keeper.write(0, keeper.take(0, a_step([[1.0]])))
    assert "trajectories of step 0 are not kept" in caplog.text


def credited(rollout: int) -> TokenValues:
    ones = np.ones(2, np.float32)
    return TokenValues(
        rollout=rollout, turn=0, places=np.arange(2), ids=np.array([4, 5]), logprobs=-ones, advantages=0.5 * ones
    )


async def told(*values: TokenValues) -> list[TokenValues]:
    return list(values)


async def died() -> list[TokenValues]:
    raise ray.exceptions.RayActorError


async def test_what_training_made_of_kept_rollouts_comes_into_their_files(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, keep=1)
    assert await recorder.record(0, a_step([[1.0, 0.0, 0.5, 0.5]])) == {0, 1, 2}
    recorder.credit(0, {0: 0.5, 1: -0.5}, [told(credited(0), credited(3)), told(credited(1))])
    assert await recorder.record(1, a_step([[1.0, 0.0]])) == {0, 1}
    recorder.credit(1, {0: 1.0}, [died(), told(credited(0))])
    await recorder.close()
    read = [atraj.read(path).data["steps"][-1] for path in sorted((tmp_path / "trajectories").iterdir())]
    assert [step.get("advantages") for step in read] == [[0.5, 0.5], [0.5, 0.5], None, None, None]
    assert [step.get("trainer_logprobs") for step in read[:3]] == [[-1.0, -1.0], [-1.0, -1.0], None]
    rows = all_rows(tmp_path)
    assert [row["advantage"] for row in rows] == [0.5, -0.5, None, None, 1.0, None]


def test_a_file_that_is_damaged_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(tmp_path, 2)
    keeper.write(0, keeper.take(0, a_step([[1.0]])))
    (tmp_path / "trajectories" / "000000-00000000.atraj").write_text("{")
    keeper.add(0, [credited(0)])
    assert "trajectories of step 0 stay without what training made of them" in caplog.text
