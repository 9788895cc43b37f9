from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.config import Config, parse
from miles_lite.errors import UserError
from miles_lite.rollout.precheck import check_inputs
from miles_lite.run import CALL_TIMEOUT, Run


def config(model: Path, folder: Path, *flags: str) -> Config:
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"input": "hello"}\n')
    needed = ["--hf-checkpoint", str(model), "--prompt-data", str(prompts), "--run-dir", str(folder / "run")]
    return parse([*needed, "--rollout-batch-size", "1", "--num-rollout", "1", *flags])[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use-kl-loss", "--ref-load", "absent"], "--ref-load .*absent: no such folder"),
        (["--rm-type", "magic"], "--rm-type magic: known are"),
        (["--session-message-matcher", "magic"], "--session-message-matcher magic: choose one of"),
        (["--session-message-matcher", "absent.py:match"], "--session-message-matcher: no such file"),
        (["--session-sample-picker-path", "absent.py:pick"], "--session-sample-picker-path: no such file"),
        (["--session-sample-postprocessor-path", "absent.py:last"], "--session-sample-postprocessor-path: no such"),
        (["--dynamic-sampling-filter-path", "absent.py:keep"], "--dynamic-sampling-filter-path: no such file"),
        (["--custom-rm-path", "absent.py:reward"], "--custom-rm-path: no such file"),
        (["--eval-prompt-data", "held", "absent.jsonl"], "no such file.*absent.jsonl"),
        (["--rollout-max-prompt-len", "2"], "line 1: the prompt has"),
        (["--rollout-max-context-len", "3"], "line 1: the prompt has"),
        (["--tito-model", "magic"], "magic"),
        (["--sglang-no-such-option", "1"], "no-such-option"),
        (["--sglang-nnodes", "2"], "--sglang-nnodes is decided by --rollout-num-gpus-per-engine and"),
        (["--sglang-host", "0.0.0.0"], "--sglang-host is decided by --bind-host"),
        (["--sglang-weight-version", "7"], "--sglang-weight-version is decided by the weight updates"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    flags: list[str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check_inputs(config(tiny_model, tmp_path, *flags))


@pytest.mark.parametrize("flag", ["--run-dir", "--load", "--save", "--save-hf", "--trajectory-dir"])
def test_a_file_where_a_folder_is_to_be_made_is_named(flag: str, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    flags = [*(["--save", str(tmp_path)] if flag == "--save-hf" else []), flag, str(file / "inside")]
    with pytest.raises(UserError, match=f"{flag} .*: {file} is no folder"):
        check_inputs(config(tiny_model, tmp_path, *flags))


def test_a_run_folder_that_cannot_be_made_is_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"--run-dir .* is no folder"), Run(config(tiny_model, tmp_path)):
        raise AssertionError("unreachable")


def test_evaluation_is_due_before_the_first_step_unless_skipped(tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--eval-interval", "2", "--eval-prompt-data", "held", "x"]
    for skip, due in ((False, True), (True, False)):
        run = Run(config(tiny_model, tmp_path, *flags, *(["--skip-eval-before-train"] if skip else [])))
        run.num_rollout = 5
        assert run.eval_is_due() is due
        assert [run.eval_is_due(after=at) for at in range(5)] == [False, True, False, True, True]
    assert not Run(config(tiny_model, tmp_path)).eval_is_due()


def test_an_evaluation_is_waited_for_as_long_as_its_agents_may_take(tiny_model: Path, tmp_path: Path) -> None:
    run = Run(config(tiny_model, tmp_path, "--rollout-timeout", "100", "--agent-concurrency", "4"))
    run._eval_rollouts = 9
    assert run._eval_timeout() - CALL_TIMEOUT == 300
