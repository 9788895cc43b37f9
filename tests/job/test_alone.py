"""The trainer on rollouts that another run saved: what there is of them, and what cannot be trained on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from miles_lite.config.options import Config, parse
from miles_lite.errors import UserError
from miles_lite.job.alone import Saved, train_alone
from miles_lite.rollout import dump
from tests.config.helpers import NEEDED
from tests.rollout.test_dump import IDS, step


def saved(folder: Path, files: int, *flags: str) -> tuple[Config, str]:
    """A configuration of three steps, and files of some."""
    pattern = f"{folder}/{{rollout_id}}.pt"
    for number in range(files):
        dump.write(dump.path_of(pattern, number), number, step())
    return parse([*NEEDED, "--load-debug-rollout-data", pattern, *flags])[0], pattern


@pytest.mark.parametrize(("files", "steps"), [(1, 1), (3, 3), (5, 3)])
def test_a_run_ends_well_after_the_last_file(
    files: int, steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    material = Saved(*saved(tmp_path, files), IDS)
    with caplog.at_level(logging.WARNING):
        material.check()
    assert material.steps == steps
    said = f"--num-rollout is 3: the run ends after step 1, whose file {tmp_path}/0.pt is the last"
    assert (said in caplog.text) == (files == 1)


def test_without_a_number_there_are_as_many_steps_as_files(tmp_path: Path) -> None:
    config, pattern = saved(tmp_path, 2)
    flags = ["--hf-checkpoint", "m", "--prompt-data", "p", "--rollout-batch-size", "4", "--num-epoch", "1"]
    assert Saved(parse([*flags, "--load-debug-rollout-data", pattern])[0], pattern, IDS).steps == 2
    with pytest.raises(UserError, match=r"no file .*absent/0\.pt"):
        Saved(config, f"{tmp_path}/absent/{{rollout_id}}.pt", IDS).check()


def test_a_later_file_that_cannot_be_trained_on_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config, pattern = saved(tmp_path, 3)
    (tmp_path / "2.pt").write_bytes(b"no dump")
    with pytest.raises(UserError, match=r"2\.pt: not as --save-debug-rollout-data"):
        Saved(config, pattern, IDS).check()
    dump.write(tmp_path / "2.pt", 2, step())
    with pytest.raises(UserError, match=r"0\.pt: .*has the id"):
        Saved(config, pattern, 10).check()


def test_a_teacher_that_nobody_named_is_refused(tmp_path: Path) -> None:
    flags = ("--opd-teacher", "math=a", "code=b", "--opd-teacher-key", "k")
    with pytest.raises(UserError, match=r"0\.pt: a rollout's teacher is '', and --opd-teacher knows math, code"):
        Saved(*saved(tmp_path, 1, *flags), IDS).check()


def test_what_is_trained_alone_is_checked_as_any_run(tiny_model: Path, tmp_path: Path) -> None:
    _, pattern = saved(tmp_path, 1)
    flags = [
        "--hf-checkpoint",
        str(tiny_model),
        "--run-dir",
        str(tmp_path / "run"),
        "--load-debug-rollout-data",
        pattern,
    ]
    for more, message in (
        (["--use-rollout-routing-replay"], "has no router that chooses experts"),
        (["--advantage-estimator", "absent.py:mine"], "--advantage-estimator: no such file"),
        (["--load-debug-rollout-data", f"{tmp_path}/absent/{{rollout_id}}.pt"], "no file"),
    ):
        with pytest.raises(UserError, match=message):
            train_alone(parse([*NEEDED, *flags, *more])[0])
