"""The step line and the progress display."""

from __future__ import annotations

import io

from miles_lite.observe.progress import Progress
from miles_lite.observe.terminal import eval_line, gap_line, step_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_step_line_shows_what_was_logged() -> None:
    line = step_line(
        3,
        total=60,
        metrics={
            "rollout/reward_unfiltered": 0.4118,
            "rollout/zero_std_unfiltered_ratio": 0.25,
            "train/train_rollout_logprob_abs_diff": 3.2e-6,
            "perf/step_time": 9.84,
            "train/loss": 0.3,
        },
    )
    assert line == "step  3/60  reward 0.412  zero-std 25%  gap 3.2e-06  step 9.8s"


def test_eval_line_shows_means_only() -> None:
    metrics = {"eval/held-out": 0.5, "eval/held-out-truncated_ratio": 0.1, "eval/other": 0.25}
    assert eval_line(5, total=60, metrics=metrics, datasets=["held-out", "absent"]) == "eval  5/60  held-out 0.500"


def test_a_gap_that_rounding_does_not_explain_is_said() -> None:
    assert gap_line({"train/logprob_gap/numerics": 0.03, "train/logprob_gap/staleness": 2.0}) is None
    assert gap_line({}) is None
    assert "differ by 0.41 nats" in str(gap_line({"train/logprob_gap/numerics": 0.41}))


def test_in_a_log_file_lines_are_plain_and_sparse() -> None:
    out = io.StringIO()
    with Progress(steps=2, stream=out, every=3600.0) as progress:
        for _ in range(2):
            progress.begin("rollout", groups=16, rollouts=128)
            for done in range(16):
                progress.update(groups=done, rollouts=8 * done)
            progress.step("done")
    assert out.getvalue() == "done\ndone\n"


def test_in_a_log_file_a_long_phase_says_where_it_is() -> None:
    out = io.StringIO()
    with Progress(steps=60, done=2, stream=out, every=0.0) as progress:
        progress.begin("rollout", groups=16, rollouts=128)
        progress.update(groups=7, rollouts=64)
    assert out.getvalue() == "step 3/60: rollout, 7/16 groups, 64/128 rollouts, 0 s\n"


def test_on_a_terminal_there_are_bars_and_lines_stay() -> None:
    out = Terminal()
    with Progress(steps=60, done=2, stream=out) as progress:
        progress.begin("rollout", groups=16, rollouts=128)
        progress.update(groups=7, rollouts=64)
        progress.step("step 3/60 [reward] 0.5")
    shown = out.getvalue()
    assert "64/128" in shown
    assert "7/16" in shown
    assert "3/60" in shown
    assert "step 3/60 [reward] 0.5\n" in shown.replace("\r", "")


def test_the_time_left_is_that_of_recent_steps() -> None:
    line = step_line(3, total=63, metrics={"perf/wait_time_ratio": 0.75}, recent=[50.0, 70.0])
    assert line == "step  3/63  trainer 25%  left 1:00:00"
    assert step_line(63, total=63, metrics={}, recent=[1.0]) == "step 63/63"
