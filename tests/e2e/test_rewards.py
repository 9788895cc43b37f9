"""Prompts of Parquet, options in YAML, built-in rewards, on real parts: processes that judge, an engine that does."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from tests.e2e.job import assert_nothing_left, run, values
from tests.report.runs import all_rows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]


def test_rows_of_parquet_are_judged_by_several_rules_and_by_the_engines_themselves(
    tiny_model: Path, tmp_path: Path, mark: str
) -> None:
    run_dir, data, more = tmp_path / "run", tmp_path / "p.parquet", tmp_path / "judged.jsonl"
    rows = [{"prompt": f"say {at}", "label": "4"} for at in range(3)] + [{"prompt": "long " * 300, "label": "4"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    more.write_text(json.dumps({"prompt": "hello", "label": "4", "metadata": {"rm_type": "llm_judge"}}) + "\n")
    options = {
        "hf_checkpoint": str(tiny_model),
        "prompt_data": f"{data}=3,{more}=1",
        "data": {"input_key": "prompt", "label_key": "label", "overlong_prompts": "skip", "system_prompt": "be brief"},
        "rewards": {"rm_type": ["math", "f1=0.5", "random"], "rm_processes": 1},
        "rollouts": {"rollout_batch_size": 2, "n_samples_per_prompt": 2, "num_rollout": 3},
        "rollout_max_response_len": 6,
        "rollout_max_prompt_len": 60,
        "device": "cpu",
        "run_dir": str(run_dir),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    run("rollout", ["--config", str(tmp_path / "run.yaml")], mark=mark, log=tmp_path / "log", timeout=400)
    assert_nothing_left(mark)
    assert values(run_dir, "rollout/rewards/math") == [0.0] * 3
    assert all(0 <= reward <= 1 for reward in values(run_dir, "rollout/rewards/random"))
    assert values(run_dir, "rollout/prompts_skipped")[-1] >= 1
    table = all_rows(run_dir)
    judged = [row for row in table if row["rewards"] is None]
    assert judged
    for row in judged:  # an untrained model says a number, or none
        broke = row["where"] == "reward" and "llm_judge: no score from 0 to 10 in" in row["why"]
        assert broke or (row["where"] is None and 0 <= row["reward"] <= 1)
    failures = run_dir / "failures.jsonl"
    failed = [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else []
    assert {each["rollout"]: each["why"] for each in failed} == {
        row["rollout"]: row["why"] for row in table if row["where"] is not None
    }
