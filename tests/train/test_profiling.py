"""Traces of chosen training steps, in a format that viewers read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from miles_lite.config.debugging import Debugging
from miles_lite.train.building import build_learner
from miles_lite.train.profiling import Recorder
from tests.train.helpers import make_batch, make_config, make_samples

CPU = torch.device("cpu")


def recorder(folder: Path, *, rank: int = 0, start: int = 1, end: int = 3, ranks: tuple[int, ...] = ()) -> Recorder:
    options = Debugging(use_pytorch_profiler=True, profile_step_start=start, profile_step_end=end, profile_ranks=ranks)
    return Recorder(options, rank=rank, device=CPU, folder=folder)


def names(file: Path) -> list[str]:
    return [event["name"] for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]


@pytest.mark.usefixtures("process_group")
def test_the_chosen_steps_of_a_learner_are_traced(model_dir: Path, tmp_path: Path) -> None:
    trainer = build_learner(make_config(model_dir), device=CPU)
    records, file = recorder(tmp_path), tmp_path / "trace_rank_00000.json.gz"
    seen = []
    for step in range(4):
        with records.step(step):
            trainer.train(make_batch(make_samples(step, 2), [1.0, -1.0]))
        seen.append(file.exists())
    assert seen == [False, False, True, True]
    ran = names(file)
    assert sum("AdamW" in name for name in ran) == 2, "of two steps"
    assert "aten::mm" in ran


def test_ranks_that_are_not_chosen_record_nothing(tmp_path: Path) -> None:
    with recorder(tmp_path, rank=1, ranks=(0,)).step(1):
        torch.ones(2).sum()
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_that_ends_earlier_recorded_is_written_once(tmp_path: Path) -> None:
    records = recorder(tmp_path, end=9)
    with records.step(5):
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert list(tmp_path.iterdir()) == []
    records.close()
    records.close()
    (file,) = tmp_path.iterdir()
    assert "aten::mm" in names(file)
