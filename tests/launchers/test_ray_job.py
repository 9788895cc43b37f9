"""run-ray-job.sh for real: two raylets on this machine, a Ray job, and an end that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.processes import called
from tests.waiting import wait_until

REPO = Path(__file__).parents[2]

PROBE = """
import os, sys, time
import ray

ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Probe:
    def look(self):
        import patched_package
        node = ray.get_runtime_context().get_node_id()
        return node, patched_package.WORD, os.environ["FORWARDED"]

nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
assert len(nodes) == 2, nodes
pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
probes = [Probe.options(scheduling_strategy=pin(node, soft=False)).remote() for node in nodes]
seen = ray.get([probe.look.remote() for probe in probes], timeout=120)
assert sorted(node for node, _, _ in seen) == sorted(nodes)
print("SEEN", *(f"{word}-{forwarded}" for _, word, forwarded in seen), os.getcwd())
if "wait" in sys.argv:
    print("WAITING", flush=True)
    time.sleep(600)
"""

SEEN = f"SEEN patched-forwarded patched-forwarded {REPO}"

FAKE_SSH = """#!/usr/bin/env bash
# ssh to this machine: the command runs in an empty environment, as it would in another host's login.
shift
exec env -i HOME="$HOME" PATH=/usr/bin:/bin setsid bash -c "$*"
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The launcher's environment: small nodes, own ports and folders, a package that only PYTHONPATH shows."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "patched_package.py").write_text("WORD = 'patched'\n")
    (tmp_path / "probe.py").write_text(PROBE)
    ssh = tmp_path / "ssh"
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    # A short path: Ray's sockets lie below it, and their names are limited to 107 bytes.
    ray_folder = Path(f"/tmp/r{os.getpid()}{free_port()}")
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "VENV": str(Path(sys.executable).parents[1]),
        "PYTHONPATH": str(tmp_path / "patch"),
        "FORWARDED": "forwarded",
        "FORWARD_ENV": "FORWARDED",
        "MASTER_ADDR": "127.0.0.1",
        "WORKER_HOSTS": "another-host",
        "SSH": str(ssh),
        "RAY_PORT": str(free_port()),
        "RAY_DASHBOARD_PORT": str(free_port()),
        "RAY_START_ARGS": f"--num-cpus=1 --object-store-memory=100000000 --dashboard-agent-listen-port=0 "
        f"--temp-dir={ray_folder} --node-ip-address=127.0.0.1",
        "NUM_GPUS": "0",
        "START_SECONDS": "120",
        "ENTRYPOINT": f"python {tmp_path / 'probe.py'}",
    }
    wait_until(lambda: not called(str(ray_folder)), "what is left behind to end", seconds=20)
    subprocess.run(["rm", "-rf", str(ray_folder)], check=True)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_job_that_ends_well_is_a_launcher_that_does(job: dict[str, str]) -> None:
    done = subprocess.run(
        [REPO / "launchers" / "run-ray-job.sh"], env=job, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert SEEN in done.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_a_job_that_fails_is_a_launcher_that_fails(job: dict[str, str]) -> None:
    job |= {"ENTRYPOINT": "exit 3", "WORKER_HOSTS": ""}
    done = subprocess.run(
        [REPO / "launchers" / "run-ray-job.sh"], env=job, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0


def heed_interrupts() -> None:
    """A shell cannot trap a signal that was ignored when it began, as in jobs that a script starts with `&`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_actor_on_each_of_two_raylets_sees_the_patched_package_until_ctrl_c_or_sigterm_ends_them(
    job: dict[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job |= {"ENTRYPOINT": job["ENTRYPOINT"] + " wait"}
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [REPO / "launchers" / "run-ray-job.sh"],
            env=job,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        deadline = time.monotonic() + 240
        while "WAITING" not in (text := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline, f"the job did not start: {text}"
            assert launcher.poll() is None, text
            time.sleep(0.5)
        assert SEEN in text
        if number is signal.SIGINT:
            os.killpg(launcher.pid, number)  # as a terminal does
        else:
            launcher.send_signal(number)
        assert launcher.wait(timeout=90) == code
    wait_until(lambda: not called(job["ENTRYPOINT"].split()[1]), "the job to end", seconds=20)
