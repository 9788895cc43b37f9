"""What the debugging options refuse, and what they imply."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.config.options import parse
from miles_lite.errors import UserError
from tests.config.helpers import NEEDED

SAVE, LOAD = "--save-debug-rollout-data", "--load-debug-rollout-data"
TRACED = ["--use-pytorch-profiler", "--profile-step-start", "1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--debug-rollout-only", "--debug-train-only", LOAD, "d/{rollout_id}.pt"], "take one half"),
        (["--debug-rollout-only", LOAD, "d/{rollout_id}.pt"], "take one half"),
        (["--debug-train-only"], f"needs {LOAD}"),
        ([LOAD, "a/{rollout_id}.pt", SAVE, "b/{rollout_id}.pt"], "has nothing to save"),
        ([SAVE, "d/one.pt"], r"must hold \{rollout_id\}"),
        (["--loss-type", "sft_loss", SAVE, "d/{rollout_id}.pt"], "has no rollouts"),
        (["--profile-step-start", "1"], "needs --use-pytorch-profiler or"),
        (["--memory-snapshot-path", "m.pickle"], "needs --record-memory-history"),
        (["--record-memory-history", "--device", "cpu"], "on CPUs: leave it out"),
        (["--use-pytorch-profiler", "--debug-rollout-only"], "--debug-rollout-only trains nothing"),
        (["--use-pytorch-profiler"], "--profile-step-start 10: there is no such step, --num-rollout is 3"),
        ([*TRACED, "--profile-step-end", "1"], "1 must be below --profile-step-end 1"),
        ([*TRACED, "--profile-ranks", "0", "1"], "--profile-ranks 1: there are 1 train ranks"),
        (["--train-backend", "megatron"], "TransformerEngine.*transformers below 5.*--tensor-model"),
    ],
)
def test_senseless_combinations_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([*NEEDED, *flags])


def test_rollouts_that_are_loaded_need_no_engines_and_their_path_is_absolute() -> None:
    config, _ = parse([*NEEDED, LOAD, "d/{rollout_id}.pt"])
    assert config.debugging.trains_alone
    assert config.debugging.load_debug_rollout_data == str(Path("d/{rollout_id}.pt").absolute())
    assert not parse([*NEEDED, "--debug-rollout-only", "--train-backend", "fsdp"])[0].debugging.trains_alone


def test_ranks_record_unless_others_are_named() -> None:
    chosen = parse([*NEEDED, *TRACED, "--actor-num-gpus-per-node", "4", "--profile-ranks", "1", "3"])[0].debugging
    assert [chosen.records(rank) for rank in range(4)] == [False, True, False, True]
    assert parse([*NEEDED, *TRACED])[0].debugging.records(0)
    assert not parse(NEEDED)[0].debugging.records(0)
