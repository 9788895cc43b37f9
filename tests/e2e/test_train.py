"""The job on real parts: Ray, SGLang on CPU, mini-swe-agent, two train ranks. Nothing here is a fake."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from miles_lite.model_folder import check_model_folder
from miles_lite.report import event_rows, fleet_rows
from miles_lite.traces import atraj
from tests.collector import Collector, collecting
from tests.e2e.job import Prepared, assert_nothing_left, ended, marked_as, rows, run, start, values, wait_for
from tests.metric_names import undocumented
from tests.processes import above, command_of
from tests.report.runs import all_rows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def accounted(summary: dict[str, int]) -> bool:
    ends = ("trained", "filtered", "failed", "quarantined", "unused")
    return summary["prompts_started"] == sum(summary[f"prompts_{end}"] for end in ends)


def test_a_few_steps_train(prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path) -> None:
    save = tmp_path / "checkpoints"
    heldout = f"{prepared.folder / 'heldout.jsonl'}@[0:4]"
    common = ["--save", str(save), "--save-interval", "1", "--use-wandb", "--wandb-mode", "offline"]
    common += ["--save-hf", str(tmp_path / "hf-{rollout_id}")]
    evaluation = ["--eval-interval", "2", "--eval-prompt-data", "heldout", heldout]
    with collecting() as collector:
        common += ["--otlp-endpoint", collector.url]
        flags = prepared.flags(run_dir, *common, *evaluation, "--num-rollout", "2", agent="agent.py")
        output = run("train", flags, mark=mark, log=tmp_path / "log")
    assert_nothing_left(mark)
    assert_traced(collector)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert accounted(summary)
    assert summary["prompts_trained"] == 8
    assert summary["rollouts_failed"] == 0
    assert summary["logprob_gap_max"] <= 1e-4
    assert (run_dir / "reward.png").stat().st_size > 10_000
    assert str(run_dir) in output
    assert list(run_dir.glob("wandb/offline-run-*"))
    table = all_rows(run_dir)
    assert [row["step"] for row in table if row["outcome"] == "trained"] == [0] * 16 + [1] * 16
    assert all(row["finished_at"] > row["started_at"] and row["model"] > 0 and row["tokens"] > 0 for row in table)
    trained = [row for row in table if row["outcome"] == "trained"]
    assert all((row["advantage"] == 0) == row["zero_std"] and row["idle"] >= 0 for row in trained)
    assert all((row["advantage"] > 0) == (row["reward"] == 1) for row in trained if not row["zero_std"])
    model, served = check_model_folder(str(tmp_path / "hf-1")), run_dir / "weights" / "v2"
    assert (model / "model.safetensors").read_bytes() == (served / "model.safetensors").read_bytes()
    assert values(run_dir, "rollout/weight_version/mean") == [0.0, 1.0]
    assert len(values(run_dir, "eval/heldout")) == 2
    logged = [set(row) for row in rows(run_dir)]
    assert undocumented(set().union(*logged)) == set()
    kept = [atraj.read(path) for path in sorted((run_dir / "trajectories").glob("*.atraj"))]
    assert {one.data["metadata"]["step"] for one in kept} == {0, 1}
    rewards = {row["rollout"]: row["reward"] for row in table}
    assert all(one.reward == rewards[one.data["metadata"]["rollout_index"]] for one in kept)
    best = [one.reward for one in kept if "best" in one.data["metadata"]["kept"]]
    assert best == [max(row["reward"] for row in table if row["step"] == step) for step in (0, 1)]
    assert all(mask.sum() > 0 for one in kept for _, mask, _ in one.sequences())
    for step in [step.data for one in kept for step in one.steps if step.sampled]:
        pairs = list(zip(step["output_logprobs"], step["trainer_logprobs"], step["advantages"], strict=True))
        assert all(abs(engine - trainer) <= 1e-3 for engine, trainer, _ in pairs if trainer is not None)
        assert sum(None not in pair for pair in pairs) > 0
    by_rollout = {one.data["metadata"]["rollout_index"]: one for one in kept}
    zero_std_rows = [row["rollout"] for row in table if row["zero_std"] and row["rollout"] in by_rollout]
    for step in [step.data for index in zero_std_rows for step in by_rollout[index].steps if step.sampled]:
        assert {value for value in step["advantages"] if value is not None} <= {0.0}
    events = event_rows.read(run_dir)
    assert [(event["kind"], event["what"]) for event in events if event["kind"] != "alarm"] == [
        *(("start", None), ("engines", None), ("stands", None)),
        *(("weights", "v0"), ("evaluation", "v0"), ("weights", "v1"), ("save", None)),
        *(("weights", "v2"), ("evaluation", "v2"), ("save", None), ("end", None)),
    ]
    assert events[-1]["said"] == "well"
    scraped = json.loads((run_dir / "logs" / "scrape.json").read_text())
    assert [one["labels"] for one in scraped] == [{"run": run_dir.name, "part": part} for part in ("router", "session")]
    fleet = fleet_rows.read(run_dir)
    assert {row["engine"] for row in fleet} == set(range(len({row["engine"] for row in fleet})))
    assert {row["version"] for row in fleet} <= {0, 1, 2}
    zero_std = next(at for at, names in enumerate(logged) if "rollout/zero_std/all_zero_percentage" in names)
    assert zero_std < next(at for at, names in enumerate(logged) if "train/loss" in names)


def test_an_engine_killed_in_the_middle_is_replaced_and_every_prompt_is_accounted_for(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    sizes = ["--num-rollout", "3", "--rollout-num-gpus", "2", "--rollout-batch-size", "8"]
    broadcast = ["--update-weight-transfer-mode", "distributed", "--check-weight-update-equal"]
    flags = prepared.flags(run_dir, *sizes, *broadcast)
    process = start("train", flags, mark=mark, log=log)
    wait_for("the first step", lambda: values(run_dir, "perf/step_time"), timeout=200, process=process, log=log)
    victims = marked_as(mark, "sglang.launch_server")
    assert len(victims) >= 2
    assert all(any("fork_server_main" in command_of(one) for one in above(victim)) for victim in victims)
    time.sleep(0.5)  # into the second rollout
    os.killpg(os.getpgid(victims[0].pid), signal.SIGKILL)
    assert ended(process, log, within=300) == 0, log.read_text()[-6000:]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert accounted(summary)
    assert summary["prompts_trained"] == 24
    assert max(values(run_dir, "rollout/engine_restarts")) == 1
    assert any("replacing it" in row["said"] for row in event_rows.read(run_dir) if row["kind"] == "servers")
    assert_nothing_left(mark)


def assert_traced(collector: Collector) -> None:
    """Each rollout is a trace, from the agent worker by its session to the engine, and each update a span."""
    rollouts = {span.trace: span for span in collector.named("rollout")}
    assert len([span for span in rollouts.values() if not span.attributes["evaluation"]]) == 32
    turns = {span.id: span for span in collector.named("turn")}
    asked = collector.named("engine request")
    assert {turn.trace for turn in turns.values()} == set(rollouts)
    assert all(turn.parent == rollouts[turn.trace].id for turn in turns.values())
    assert {span.trace for span in asked} == set(rollouts), "a turn that is refused, or joins another, asks no engine"
    assert all(span.trace == turns[span.parent].trace for span in asked)
    assert {span.trace for span in collector.named("tool")} <= set(rollouts)
    assert [span.attributes["version"] for span in collector.named("weight update")] == [0, 1, 2]
    assert {span.role for span in collector.spans} >= {"driver", "session-0", "agent-worker-0"}


@pytest.mark.slow
def test_ctrl_c_and_sigterm_end_everything_and_load_continues(
    prepared: Prepared, run_dir: Path, mark: str, tmp_path: Path
) -> None:
    save = tmp_path / "checkpoints"
    flags = prepared.flags(run_dir, "--num-rollout", "50", "--save", str(save), "--load", str(save))
    first = interrupted(flags, signal.SIGINT, run_dir=run_dir, mark=mark, log=tmp_path / "log")
    assert last_saved(save) == first
    second = interrupted(flags, signal.SIGTERM, run_dir=run_dir, mark=mark, log=tmp_path / "log2")
    assert last_saved(save) == second > first
    versions = [int(version) for version in values(run_dir, "rollout/weight_version/mean")]
    assert versions[: second + 1] == list(range(second + 1))
    state = json.loads((save / "rollout" / f"global_dataset_state_dict_{second}.json").read_text())
    assert state["accounts"]["started"] == state["accounts"]["trained"] == 4 * (second + 1)


def interrupted(flags: list[str], number: signal.Signals, *, run_dir: Path, mark: str, log: Path) -> int:
    """Start a run, let it train at least one step, end it by a signal in a rollout; the last step it trained."""
    before = len(values(run_dir, "perf/step_time"))
    process = start("train", flags, mark=mark, log=log)

    def trained() -> bool:
        return len(values(run_dir, "perf/step_time")) > before

    wait_for("a step", trained, timeout=200, process=process, log=log)
    time.sleep(0.7)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert ended(process, log) == 130, log.read_text()[-6000:]
    assert_nothing_left(mark)
    return int(max(row["train/step"] for row in rows(run_dir) if "train/loss" in row))


def last_saved(folder: Path) -> int:
    return int((folder / "latest_checkpointed_iteration.txt").read_text())
