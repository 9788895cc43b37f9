"""Which losses a run goes on after, and from where; nothing is started here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import ray

from miles_lite.config.options import Config, parse
from miles_lite.errors import RunLostError, UnavailableError, UserError
from miles_lite.job.attempts import attempts
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.watch import death_in
from miles_lite.observe.sinks import Sinks
from miles_lite.train.iterations import LATEST

STEPS = 9


def config(model: Path, folder: Path, *flags: str) -> Config:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps({"input": "say a", "label": "a"}) + "\n")
    needed = ["--hf-checkpoint", str(model), "--prompt-data", str(prompts), "--run-dir", str(folder / "run")]
    return parse([*needed, *("--rollout-batch-size", "1", "--num-rollout", str(STEPS)), *flags])[0]


class Trainer:
    """Saves what it is told to, and then fails so. Each attempt takes the next of `plans`: from which step on, up to
    which it trains, whether it saved that, and how it ends."""

    def __init__(self, *plans: tuple[int, int | None, bool, BaseException | None]) -> None:
        self.plans = list(plans)
        self.given: list[Config] = []

    def __call__(self, given: Config, life: Lifetime) -> str:
        self.given.append(given)
        first, last, saved, error = self.plans.pop(0)
        life.mark_ready(first=first, of=STEPS)
        if last is not None:
            life.reached.trained = last
        if saved:
            save = Path(given.checkpoint.save or "")
            save.mkdir(exist_ok=True)
            (save / LATEST).write_text(str(last))
            os.utime(save / LATEST, (len(self.given), len(self.given)))  # file systems count coarsely
        if error is not None:
            raise error
        return "done"


def run(given: Config, attempt: Callable[[Config, Lifetime], str]) -> str:
    with attempts(given) as tries:
        return tries.until_done(attempt)


def test_a_run_goes_on_from_its_newest_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    given = config(
        tiny_model, tmp_path, "--save", str(tmp_path / "save"), "--load", str(tmp_path / "old"), "--finetune"
    )
    trainer = Trainer(
        (0, 0, False, RunLostError("train rank 1 has died: killed", log="last words")),
        (0, 3, True, UnavailableError("no engine is left")),
        (4, 8, True, None),
    )
    assert run(given, trainer) == "done"
    assert trainer.given[:2] == [given, given], "nothing was saved: as it began"
    last = trainer.given[2].checkpoint
    assert (last.load, last.finetune, last.load_optim, last.load_rng) == (given.checkpoint.save, False, True, True)
    rows = [json.loads(line) for line in (given.run_dir / "restarts.jsonl").read_text().splitlines()]
    assert [(row["restart"], row["lost"], row["why"], row["log"]) for row in rows] == [
        (1, "Step 2 of 9", "train rank 1 has died: killed", "last words"),
        (2, "Step 5 of 9", "no engine is left", ""),
    ]


def test_what_another_run_left_in_the_folder_is_not_gone_on_from(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "save").mkdir()
    (tmp_path / "save" / LATEST).write_text("7")
    given = config(tiny_model, tmp_path, "--save", str(tmp_path / "save"))
    trainer = Trainer((0, 2, False, RunLostError("it has died")), (0, 8, False, None))
    run(given, trainer)
    assert trainer.given == [given, given]


def test_restarts_are_bounded_and_counted_anew_after_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    given = config(tiny_model, tmp_path, "--save", str(tmp_path / "save"), "--max-restarts", "2")
    lost = RunLostError("it has died")
    trainer = Trainer(
        (0, 0, True, lost), (1, 1, False, lost), (1, 2, True, lost), (3, 3, False, lost), (3, 3, False, lost)
    )
    with pytest.raises(RunLostError, match=r"it has died.\n  Step 5 of 9 is lost. --max-restarts 2 are used up. Go on"):
        run(given, trainer)
    assert not trainer.plans


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        (["--max-restarts", "0", "--save", "s"], (0, None, False, RunLostError("it has died"))),
        ([], (0, 0, False, RunLostError("it has died"))),
        (["--save", "s"], (0, 0, False, UserError("more than --max-failure-share"))),
        (["--save", "s"], (0, 0, False, ValueError("a bug"))),
    ],
    ids=["none is wanted", "nothing can be gone on from", "a user's", "a bug"],
)
def test_what_another_attempt_does_not_mend_ends_the_run(
    tiny_model: Path, tmp_path: Path, flags: list[str], plan: tuple[int, int | None, bool, Exception]
) -> None:
    trainer = Trainer(plan)
    with pytest.raises(type(plan[3]), match=str(plan[3])):
        run(config(tiny_model, tmp_path, *flags), trainer)
    assert not (tmp_path / "run" / "restarts.jsonl").exists()


def test_without_a_folder_for_checkpoints_a_run_begins_again_where_nothing_was_trained(
    tiny_model: Path, tmp_path: Path
) -> None:
    assert (
        run(config(tiny_model, tmp_path), Trainer((0, None, False, RunLostError("x")), (0, 8, False, None))) == "done"
    )


def test_what_never_stood_is_not_tried_again_and_what_stood_is(tiny_model: Path, tmp_path: Path) -> None:
    given, tried = config(tiny_model, tmp_path, "--save", str(tmp_path / "save")), []

    def never(_: Config, life: Lifetime) -> str:
        tried.append(life)
        raise UnavailableError("engine 0 did not start")

    with pytest.raises(UserError, match="did not start"):
        run(given, never)
    assert len(tried) == 1
    stood = Trainer((0, 0, False, RunLostError("x")), (0, 8, False, None))

    def port_is_not_free_yet(again: Config, life: Lifetime) -> str:
        tried.append(life)
        if len(tried) == 3:
            raise UserError("port 1 is not free")
        return stood(again, life)

    assert run(given, port_is_not_free_yet) == "done"
    assert len(tried) == 4


def test_what_an_actor_raised_is_known_through_the_actors_it_passed(tiny_model: Path, tmp_path: Path) -> None:
    inner = ray.exceptions.RayTaskError("news", "traceback", UnavailableError("no engine is left"))
    outer = ray.exceptions.RayTaskError("generate", "traceback", inner)
    given = config(tiny_model, tmp_path, "--save", str(tmp_path / "save"))
    assert run(given, Trainer((0, 0, False, outer), (0, 8, False, None))) == "done"


def test_a_death_inside_of_the_manager_is_one() -> None:
    cause = ray.exceptions.RayActorError()
    wrapped = ray.exceptions.RayTaskError("fleet", "traceback", cause)
    died = death_in(wrapped)
    assert died is not None
    assert died.error is cause
    assert death_in(ray.exceptions.RayTaskError("fleet", "traceback", ValueError("a bug"))) is None


class Rows:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None: ...


def test_curves_take_each_step_of_a_metric_once_and_files_all() -> None:
    file, curve = Rows(), Rows()
    sinks = Sinks([file], [curve])
    for step in range(3):
        sinks.log({"a": step}, step=step, step_key="rollout/step")
    sinks.log({"b": 1}, step=1, step_key="rollout/step")
    sinks.again()
    for step in range(1, 4):
        sinks.log({"a": 10 + step, "b": step}, step=step, step_key="rollout/step")
    assert [row for row in curve.rows if "a" in row[1]] == [
        (0, {"a": 0}),
        (1, {"a": 1}),
        (2, {"a": 2}),
        (3, {"a": 13, "b": 3}),
    ]
    assert [step for step, row in curve.rows if "b" in row] == [1, 2, 3]
    assert len(file.rows) == 7
