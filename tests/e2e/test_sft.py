"""`miles-lite train --loss-type sft_loss` on real ranks: stored ids in, a model folder out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from miles_lite.report.history import read_history
from tests.e2e.job import assert_nothing_left, ended, marked_as, run, start, values, wait_for
from tests.models import reference_logprobs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_stored_ids_are_imitated_and_the_folder_is_a_whole_model(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    data, run_dir = tmp_path / "sft.jsonl", tmp_path / "run"
    ids = [[1, 50 + row, 60, 70, 80, 2] for row in range(4)]
    rows = [{"input_ids": row, "loss_mask": [0, 0, 1, 1, 1, 1]} for row in ids]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(data), "--run-dir", str(run_dir)]
    flags += ["--loss-type", "sft_loss", "--rollout-batch-size", "4", "--num-rollout", "12", "--lr", "1e-2"]
    output = run("train", [*flags, "--actor-num-gpus-per-node", "2"], mark=mark, log=tmp_path / "log")
    assert_nothing_left(mark)
    losses = values(run_dir, "train/loss")
    before = [-reference_logprobs(tiny_model, row)[1:].mean() for row in ids]
    after = [-reference_logprobs(run_dir / "model", row)[1:].mean() for row in ids]
    assert losses[0] == pytest.approx(sum(before) / 4, abs=1e-3)
    assert sum(after) / 4 < losses[0] / 2
    assert len(losses) == 12
    assert f"model: {run_dir / 'model'}" in output
    texts = [AutoTokenizer.from_pretrained(folder).decode(ids[0]) for folder in (tiny_model, run_dir / "model")]
    assert texts[0] == texts[1]


def test_a_run_that_loses_a_rank_goes_on_by_itself(tiny_model: Path, tmp_path: Path, mark: str) -> None:
    data, run_dir, log, steps = tmp_path / "sft.jsonl", tmp_path / "run", tmp_path / "log", 24
    rows = [{"input_ids": [1, 50 + row, 60, 2], "loss_mask": [0, 0, 1, 1]} for row in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(data), "--run-dir", str(run_dir)]
    flags += ["--loss-type", "sft_loss", "--rollout-batch-size", "4", "--num-rollout", str(steps), "--lr", "1e-2"]
    flags += ["--actor-num-gpus-per-node", "2", "--save", str(tmp_path / "save"), "--save-interval", "1"]
    process = start("train", flags, mark=mark, log=log)
    wait_for(
        "three steps",
        lambda: len(values(run_dir, "train/loss")) > 2,
        timeout=200,
        process=process,
        log=log,
    )
    marked_as(mark, "ray::TrainWorker")[0].kill()
    assert ended(process, log, within=200) == 0, log.read_text()[-6000:]
    text = log.read_text()
    assert "Traceback" not in text, text[-6000:]
    assert re.search(r"train rank \d has died: .*SIGKILL.*\n  Step \d+ of 24 is lost. Restart 1 of 3", text)
    assert re.search(r"going on with step \d+ of 24 after \d+ s", text)
    assert [json.loads(line)["restart"] for line in (run_dir / "restarts.jsonl").read_text().splitlines()] == [1]
    done = [row["train/step"] for row in read_history(run_dir / "metrics.jsonl")]
    assert sorted(set(done)) == list(range(steps))
    assert len(done) <= steps + 1, "more was done again than what followed the last checkpoint"
    assert values(run_dir, "perf/restarts")[-1] == 1
    assert_nothing_left(mark)
