"""How far rollouts run ahead, and how many at once, as flags say it."""

from __future__ import annotations

import pytest

from miles_lite.config.options import parse
from miles_lite.config.scheduling import at_once
from miles_lite.errors import UserError

NEEDED = "--hf-checkpoint m --prompt-data p --rollout-batch-size 4 --num-rollout 3".split()


@pytest.mark.parametrize(
    ("flags", "staleness", "ahead"),
    [
        ("", 0, 1),
        ("--fully-async", 3, 3),
        ("--partial-rollout", 1, 1),
        ("--max-weight-staleness 2", 2, 2),
    ],
)
def test_rollouts_are_ahead_as_far_as_is_said_else_a_step_of_the_asynchronous_command(
    flags: str, staleness: int, ahead: int
) -> None:
    config, _ = parse([*NEEDED, *flags.split()])
    assert config.scheduling.staleness == staleness
    assert config.ahead().scheduling.staleness == ahead


def test_the_asynchronous_command_refuses_what_cannot_be_ahead() -> None:
    with pytest.raises(UserError, match="--offload-rollout"):
        parse([*NEEDED, "--colocate", "--offload-rollout"])[0].ahead()


def test_how_many_run_at_once_is_given_found_or_what_agents_have_room_for() -> None:
    def scheduling(*flags: str) -> tuple[bool, int]:
        found = parse([*NEEDED, *flags])[0].scheduling
        return found.finds_concurrency, found.most_at_once(64)

    assert scheduling() == (False, 64)
    assert scheduling("--rollout-concurrency", "8") == (False, 8)
    assert scheduling("--async-max-concurrent-samples", "auto") == (True, 64)
    with pytest.raises(UserError, match="have room for 64"):
        scheduling("--rollout-concurrency", "65")
    for wrong in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(UserError, match="--rollout-concurrency"):
            at_once(wrong)
