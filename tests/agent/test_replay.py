"""`miles-lite replay`: what cannot be is one message, before an engine starts; turns leave a file as they went in."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from miles_lite.agent.replayed import Replayed
from miles_lite.agent.session_client import AgentSession
from miles_lite.cli import main
from miles_lite.commands.replay import assembled
from miles_lite.errors import UserError
from miles_lite.model_folder import check_model_folder
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.traces import atraj
from miles_lite.traces.turns import messages_of, turns_to
from tests.agent.test_conversation import serve
from tests.e2e.test_replay import recorded


def spoiled(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        path = trajectory_path(run, 4, 17)
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return spoil


def within_another(run: Path) -> None:
    (run.parent / "in").mkdir()
    run.rename(run.parent / "in" / "model")


NOTHING: Callable[[Path], object] = lambda run: None  # noqa: E731
BAD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "a rollout that was not kept": (
        NOTHING,
        ["18"],
        "kept no trajectory of rollout 18 (--keep-trajectories); the last",
    ),
    "a turn beyond": (NOTHING, ["17", "--turn", "3"], "turn 3 was not recorded; there are 0 to 1"),
    "nothing to say": (NOTHING, ["17", "--turn", "2"], "give what is said next on stdin, or a turn up to 1"),
    "no such weights": (NOTHING, ["17", "--weights", "v7"], "has v0, v3; v0 is what it began with"),
    "a name of weights": (NOTHING, ["17", "--weights", "../x"], "--weights ../x: "),
    "its own folder": (NOTHING, ["17", "--out", "run/out.atraj"], "give a file that is not in the run's folder"),
    "its own folder for logs": (NOTHING, ["17", "--run-dir", "run/replay"], "give a folder that is not in the run's"),
    "a folder that is made anew": (
        within_another,
        ["17", "--run-dir", "in"],
        "nor holds it; what was recorded stays as it is",
    ),
    "an id that is none": (
        spoiled(lambda data: data["steps"][0].update(input_ids=["x"])),  # type: ignore[index]
        ["17"],
        "turn 0 has an id or a logprob that is none",
    ),
    "another tokenizer": (
        spoiled(lambda data: data["model"].update(tokenizer="0")),  # type: ignore[attr-defined]
        ["17"],
        "was recorded with another tokenizer",
    ),
    "nothing sampled": (spoiled(lambda data: data.update(steps=[], leaves=[])), ["17"], "nothing was sampled"),
    "a damaged file": (lambda run: trajectory_path(run, 4, 17).write_text("{"), ["17"], "is no trajectory: not JSON"),
    "no model": (
        lambda run: (run / "config.json").write_text('{"a": {"hf_checkpoint": "/no"}}'),
        ["17"],
        "/no: no such",
    ),
    "no run": (lambda run: (run / "config.json").unlink(), ["17"], "is no run folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_said(
    case: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, flags, said = BAD[case]
    spoil(recorded(tmp_path / "run", tiny_model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert main(["replay", "run" if Path("run").exists() else "in/model", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("error: ")
    assert not (tmp_path / "runs").exists()


def test_a_session_goes_on_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    path = trajectory_path(recorded(tmp_path / "run", tiny_model), 4, 17)
    turns = turns_to(atraj.read(path), 1)
    seen: list[str] = []

    def act(url: str) -> atraj.Trajectory | None:
        with AgentSession(url, sampling={"temperature": 1.0}, turns=turns) as session:
            replayed = Replayed(session, messages_of(turns, answered=True), 5)
            seen.extend([replayed.say("why?"), replayed.say("really?")])
            return replayed.trajectory({"replay_of": 17})

    made, running = serve(tiny_model, ["so", "yes"], act, tito_allowed_append_roles=("user",))
    assert seen == ["so", "yes"]
    recorded_ids = [token for step in atraj.read(path).steps for token in step.ids]
    assert [request["input_ids"][: len(recorded_ids)] for request in running.engine.requests] == [recorded_ids] * 2
    assert [step.content for step in made.paths()[0]][-4:] == ["why?", "so", "really?", "yes"]


def test_a_branch_is_followed_to_its_turn(tmp_path: Path) -> None:
    def turn(number: int, parent: int | None) -> dict[str, object]:
        return {
            "turn": number,
            "parent": parent,
            "messages": [{"role": "user", "content": f"q{number}"}] if number != 2 else [],
            "reply": {"role": "assistant", "content": f"a{number}", "reasoning_content": "so"},
            "drop": int(parent is not None),
            "prompt_ids": [number],
            "output_ids": [9, 10],
            "output_logprobs": [-1.0, -2.0],
            "temperature": 0.5,
            "finish_reason": "stop",
            "weight_versions": [[7, 0, 2]],
        }

    told = [turn(0, None), turn(1, 0), turn(2, 0), turn(3, 2)]
    made = atraj.build({"model": {}, "leaves": [1, 3], "turns": told})
    assert turns_to(made, 3) == [told[0], told[2] | {"turn": 1, "parent": 0}, told[3] | {"turn": 2, "parent": 1}]
    assert turns_to(made, 1) == told[:2]
    with pytest.raises(UserError, match="there are 0 to 3"):
        turns_to(made, 4)


@pytest.mark.parametrize("lasting", [True, False])
def test_saved_weights_become_a_model_folder_that_outlives_them_where_they_may_go(
    lasting: bool, tiny_model: Path, tmp_path: Path
) -> None:
    weights = recorded(tmp_path / "run", tiny_model) / "weights" / "v3"
    for _ in range(2):
        made = assembled(weights, tiny_model, tmp_path / "made", lasting=lasting)
        assert check_model_folder(str(made)) == made
        assert (made / "model.safetensors").is_symlink() is lasting
    assert assembled(tiny_model, tiny_model, tmp_path / "none", lasting=lasting) == tiny_model
    assert not (tmp_path / "none").exists()
