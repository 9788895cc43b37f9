"""Ranks that are forked, on a real Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayActorError

from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.job.forked_workers import check_models
from miles_lite.process.remote import Remote, remote
from miles_lite.stack.environment import actor_env
from miles_lite.stack.worker_start import FORK_SERVER
from miles_lite.train import model_rules
from miles_lite.train.group import worker_spec
from miles_lite.train.rank import TrainWorker
from tests.clusters import local_cluster
from tests.processes import command_of, running_after, variables_of
from tests.train.helpers import make_config
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

ENDINGS: dict[str, Callable[[Remote[TrainWorker], int], None]] = {
    "killed by Ray": lambda rank, pid: rank.kill(),
    "killed by others": lambda rank, pid: os.kill(pid, signal.SIGKILL),
    "forgotten": lambda rank, pid: None,
    "its cluster's end": lambda rank, pid: ray.shutdown(),
}


def named(worker: psutil.Process) -> bool:
    return "ray::TrainWorker" in command_of(worker)


def test_a_rank_is_a_fork_and_lives_and_dies_as_any_of_rays_workers(model_dir: Path) -> None:
    spec = worker_spec(make_config(model_dir), rank=0, ranks=1, device="cpu")
    env = actor_env()
    with local_cluster(cpus=1):
        for how, end in ENDINGS.items():
            rank = remote(TrainWorker, env=env, num_cpus=1)(spec)
            _, pid = ray.get(rank.call(TrainWorker.host_and_pid), timeout=60)
            worker = psutil.Process(pid)
            server = worker.parent()
            assert server is not None
            assert "fork_server_main" in command_of(server), f"executed, before it is {how}"
            assert server.num_threads() == 1, "a fork has the locks that other threads hold, and nobody to let them go"
            wait_until(partial(named, worker), "its name")
            assert variables_of(worker)[FORK_SERVER] == os.environ[FORK_SERVER]
            end(rank, pid)
            if how == "forgotten":
                del rank
            assert not running_after([worker], seconds=60), how
            if how.startswith("killed"):
                with pytest.raises(RayActorError):
                    ray.get(rank.call(TrainWorker.host_and_pid), timeout=60)


@pytest.mark.parametrize("server", ["there", "gone", "none"])
def test_what_ranks_would_refuse_is_said_alike_wherever_it_is_found_out(
    server: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fork, where there can be one: this process looks at no model then."""
    looked: list[Config] = []
    here = model_rules.check_models

    def look(config: Config) -> None:
        looked.append(config)
        here(config)

    monkeypatch.setattr(model_rules, "check_models", look)
    if server != "there":
        monkeypatch.setenv(FORK_SERVER, "/nowhere/socket" if server == "gone" else "")
    fine, broken = make_config(model_dir), make_config(model_dir, "--use-rollout-routing-replay")
    check_models(fine)
    with pytest.raises(UserError) as told:
        check_models(broken)
    with pytest.raises(UserError) as known:
        here(broken)
    assert str(told.value) == str(known.value)
    assert looked == ([] if server == "there" else [fine, broken])
