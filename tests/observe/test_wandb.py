"""wandb itself, offline: what it was told lies on this disk."""

from __future__ import annotations

import json
import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray

from miles_lite.config.options import parse
from miles_lite.config.tracking import Logging
from miles_lite.observe import wandb_samples, wandb_sink
from miles_lite.observe.sinks import Sinks, open_sinks
from miles_lite.observe.wandb_sink import RUN_ID, TABLE, wandb_folder
from miles_lite.report import metric_names as names
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.traces import atraj
from tests.observe.wandb_file import records
from tests.report.runs import write_run

pytestmark = pytest.mark.e2e
OFFLINE = Logging(use_wandb=True, wandb_mode="offline", wandb_table_interval=2)
SAID = "<b>done</b>\x1b[31m"


def told(folder: Path, kind: str) -> list[Any]:
    """By the newest wandb run."""
    found = wandb_folder(folder)
    assert found is not None
    return records(next(found.glob("*.wandb")), kind)


def history(folder: Path) -> list[dict[str, Any]]:
    """Of each row its values by name; what is an object there by "name.field"."""
    rows = told(folder, "history")
    return [{".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def one_step(sinks: Sinks, step: int) -> None:
    sinks.log({names.REWARD: 0.5}, step=step, step_key=names.ROLLOUT_STEP)
    sinks.step_ended(step)


def keep(run_dir: Path, step: int, rollout: int) -> None:
    turn = {
        "turn": 0,
        "parent": None,
        "messages": [{"role": "user", "content": "a task"}],
        "reply": {"content": SAID},
        "drop": 0,
        "prompt_ids": [1, 2],
        "output_ids": [3, 4],
        "output_logprobs": [-0.1, -0.2],
        "temperature": 1.0,
        "finish_reason": "stop",
        "weight_versions": [[0, 0, 2]],
    }
    made = atraj.build({"model": {}, "leaves": [0], "turns": [turn]}, reward=1.0, metadata={"kept": ["best", "some"]})
    atraj.write(made, trajectory_path(run_dir, step, rollout))


def test_every_so_many_steps_a_table_shows_the_rollouts_that_were_kept_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=1, steps=4)
    sinks = open_sinks(OFFLINE, config={}, run_dir=run)
    for step in range(4):
        keep(run, step, 32 * step)
        one_step(sinks, step)
    sinks.close()
    shown = [row for row in history(run) if f"{TABLE}.path" in row]
    assert [(row[f"{TABLE}.nrows"], row[names.ROLLOUT_STEP]) for row in shown] == [(1, 1), (1, 3)]
    folder = wandb_folder(run)
    assert folder is not None
    table = json.loads((folder / "files" / shown[-1][f"{TABLE}.path"]).read_text())
    (row,) = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    assert (row["step"], row["rollout"], row["outcome"], row["kept"]) == (3, 96, "trained", "best, some")
    assert row["said"] == "[user]\na task\n\n[assistant]\n<b>done</b>␛[31m"


def test_a_table_is_bounded_and_shows_what_failed_last(tmp_path: Path) -> None:
    def fail_most(step: int, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for each in rows[:-1]:
            each.update(where="tool", why="gone", reward=None, status="failed", outcome="failed_tool")

    run = write_run(tmp_path / "run", seed=1, steps=1, fault=fail_most)
    for rollout in range(32):
        keep(run, 0, rollout)
    rows = wandb_samples.samples(run, 0)
    assert len(rows) == wandb_samples.MOST_ROWS
    where = wandb_samples.COLUMNS.index("where")
    assert [row[where] for row in rows] == [None, *["tool"] * (len(rows) - 1)]


def test_alarms_are_alerts_and_an_error_is_the_end_of_wandbs_run_too(tmp_path: Path) -> None:
    sinks = open_sinks(OFFLINE, config={}, run_dir=tmp_path)
    sinks.alert("Nothing finishes", "every rollout failed. Look at the engines")
    sinks.close(failed=True)
    assert [(each.title, each.level) for each in told(tmp_path, "alert")] == [("Nothing finishes", "WARN")]
    assert [each.exit_code for each in told(tmp_path, "exit")] == [1]


def test_all_options_are_wandbs_config_and_no_key_is(tmp_path: Path) -> None:
    keys = ["--wandb-key", "k3y-of-wandb", "--sglang-api-key", "k3y-of-sglang"]
    flags = ["--hf-checkpoint", str(tmp_path), "--prompt-data", "none.jsonl", "--rollout-batch-size", "4"]
    config, _ = parse([*flags, "--num-rollout", "1", "--use-wandb", "--wandb-mode", "offline", *keys])
    open_sinks(config.logging, config=config.as_dict(), run_dir=tmp_path).close()
    (begun,) = told(tmp_path, "run")[:1]
    noted = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert noted.keys() - {"_wandb"} == config.as_dict().keys()
    assert all(noted[group].keys() == given.keys() for group, given in config.as_dict().items())
    assert b"k3y" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_resumed_run_goes_on_in_its_wandb_run_and_logs_no_step_twice(tmp_path: Path) -> None:
    for resumed in (False, True):
        sinks = open_sinks(OFFLINE, config={}, run_dir=tmp_path, resumed=resumed)
        for step in (1, 2) if resumed else (0, 1):
            one_step(sinks, step)
        sinks.close()
    (first, second) = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    known = (tmp_path / RUN_ID).read_text().strip()
    assert f"-{known}" in first
    assert f"-{known}" in second
    assert [row[names.ROLLOUT_STEP] for row in history(tmp_path) if names.REWARD in row] == [2]
    open_sinks(OFFLINE, config={}, run_dir=tmp_path).close()
    assert (tmp_path / RUN_ID).read_text().strip() != known


def test_the_folder_and_the_id_are_those_that_were_asked_for(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    options = Logging(use_wandb=True, wandb_mode="offline", wandb_dir=str(elsewhere), wandb_run_id="mine")
    open_sinks(options, config={}, run_dir=tmp_path / "run").close()
    found = wandb_folder(elsewhere)
    assert found is not None
    assert found.name.endswith("-mine")
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_server_that_cannot_be_reached_costs_no_run_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_sink, "START_SECONDS", 1.0)
    options = Logging(use_wandb=True, wandb_host="http://127.0.0.1:9", wandb_key="x" * 40)
    with caplog.at_level(logging.WARNING):
        sinks = open_sinks(options, config={}, run_dir=tmp_path)
    one_step(sinks, 0)
    sinks.close()
    assert "wandb cannot be reached, and the run is kept for `wandb sync`" in caplog.text
    found = wandb_folder(tmp_path)
    assert found is not None
    assert found.name.startswith("offline-run-")
    assert [row[names.REWARD] for row in history(tmp_path) if names.REWARD in row] == [0.5]


PAGE = b"""# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{ip="10.0.0.7"} 37.0
# TYPE ray_tasks gauge
ray_tasks{State="RUNNING"} 3.0
"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """Not on the test's terminal."""


def test_every_node_of_ray_is_among_the_system_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        node = {"NodeName": "10.0.0.7", "NodeManagerAddress": "127.0.0.1", "Alive": True}
        gone = {"NodeName": "10.0.0.8", "NodeManagerAddress": "127.0.0.1", "Alive": False, "MetricsExportPort": 9}
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: [node | {"MetricsExportPort": server.server_port}, gone])
        options = Logging(use_wandb=True, wandb_mode="offline")
        sink = wandb_sink.WandbSink(options, config={}, run_dir=tmp_path)
        sink.close()
        server.shutdown()
    said = {item.key: item.value_json for stats in told(tmp_path, "stats") for item in stats.item}
    found = {name: value for name, value in said.items() if "ray_" in name}
    assert len(found) == 1, sorted(said)
    ((name, value),) = found.items()
    assert "10-0-0-7" in name
    assert "ray_node_cpu_utilization" in name
    assert float(value) == 37.0
