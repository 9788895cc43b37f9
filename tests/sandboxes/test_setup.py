"""What is not as it must be for a sandbox is told, once, from what another attempt may end otherwise.

The runtimes' words are their own: Podman's were said here, Docker's and Apptainer's are those of their sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from miles_lite.errors import RolloutError, SetupError, Where
from miles_lite.sandboxes import provider
from miles_lite.sandboxes.lending import Limits, Pool
from tests.sandboxes.kinds import IMAGE, kind_of

DAEMON = "docker: Error response from daemon: "
LASTING = {
    "docker": [
        f"{DAEMON}pull access denied for nope, repository does not exist or may require 'docker login': denied",
        f"{DAEMON}manifest for python:nope not found: manifest unknown: manifest unknown",
        f'{DAEMON}Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host',
        "docker: invalid reference format: repository name (library/UPPER) must be lowercase",
        f"{DAEMON}failed to resolve reference: unexpected status from HEAD request: 401 Unauthorized",
    ],
    "podman": [
        'Error: short-name "nothing" did not resolve to an alias and no unqualified-search registries are defined',
        'Error: Invalid image name "UPPER/x", expected colon-separated transport:reference',
        "Error: initializing source docker://localhost/nothing:latest: pinging container registry localhost: "
        'Get "https://localhost/v2/": dial tcp 127.0.0.1:443: connect: connection refused',
        "Error: initializing source docker://python:nope: reading manifest nope: manifest unknown",
    ],
    "apptainer": [
        "FATAL:   Unable to handle docker://nope uri: failed to get checksum: reading manifest latest "
        "in docker.io/library/nope: requested access to the resource is denied",
        "FATAL:   could not open image /none.sif: failed to retrieve path for /none.sif: lstat /none.sif: no such file "
        "or directory",
        "FATAL:   container creation failed: failed to create user namespace: user namespace disabled",
    ],
}
PASSING = {
    "docker": [
        f"{DAEMON}toomanyrequests: You have reached your pull rate limit",
        f"{DAEMON}received unexpected HTTP status: 503 Service Unavailable",
        f'{DAEMON}Get "https://registry-1.docker.io/v2/": net/http: request canceled (Client.Timeout exceeded)',
    ],
    "podman": [
        "Error: copying system image from manifest list: reading blob: read tcp: connection reset by peer",
        "Error: initializing source docker://python:3: pinging container registry: StatusCode: 502, <html>",
    ],
    "apptainer": ["FATAL:   While making image from oci registry: error fetching image: unexpected EOF"],
}


def stand_in(folder: Path, program: str, *, said: str, code: int, here: bool = False, works: bool = True) -> None:
    """A runtime that starts nothing, and says why as it was made to."""
    (folder / "said").write_text(said)
    (folder / program).write_text(
        f"#!/bin/bash\ncase $1 in\n ps) {'exit' if works else f'cat {folder}/said >&2; exit 1'} ;;\n"
        f" image) exit {int(not here)} ;;\n inspect|kill|rm) exit 1 ;;\nesac\ncat {folder}/said >&2\nexit {code}\n"
    )
    (folder / program).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def starts(kind: str) -> None:
    Pool(provider(kind), Limits(attempts=2)).open("an/image").__enter__()


@pytest.mark.parametrize(("program", "said"), [(program, said) for program in LASTING for said in LASTING[program]])
def test_an_image_that_cannot_be_had_is_said_at_once(path: Path, program: str, said: str) -> None:
    stand_in(path, program, said=said, code=255 if program == "apptainer" else 125)
    with pytest.raises(SetupError) as caught:
        starts(program)
    assert caught.value.where is Where.SETUP
    first, mend = str(caught.value).splitlines()
    assert first.startswith(f"sandboxes of {program}: nothing runs in the image an/image: ")
    assert first.endswith(said[-100:])
    assert f"'{program} pull'" in mend


@pytest.mark.parametrize(("program", "said"), [(program, said) for program in PASSING for said in PASSING[program]])
def test_a_registry_that_may_answer_soon_is_the_environments_failure(path: Path, program: str, said: str) -> None:
    stand_in(path, program, said=said, code=255 if program == "apptainer" else 125)
    with pytest.raises(RolloutError) as caught:
        starts(program)
    assert caught.value.where is Where.ENVIRONMENT


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_an_image_in_which_nothing_runs_is_said_and_a_machine_that_is_full_is_not(path: Path, program: str) -> None:
    missing = 'OCI runtime create failed: exec: "bash": executable file not found in $PATH: unknown'
    stand_in(path, program, said=missing, code=127, here=True)
    with pytest.raises(SetupError, match=r"executable file not found(.|\n)*It must have bash, tar"):
        starts(program)
    stand_in(path, program, said="Error: no space left on device", code=125, here=True)
    with pytest.raises(RolloutError, match=f"{program} started no container of an/image: Error: no space left"):
        starts(program)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("docker", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"),
        (
            "docker",
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
        ),
        (
            "podman",
            "Error: unable to connect to Podman socket: dial unix ///run/podman/podman.sock: connect: no such file",
        ),
    ],
)
def test_a_runtime_that_does_not_work_is_said_before_anything_is_asked_of_it(
    path: Path, program: str, said: str
) -> None:
    stand_in(path, program, said=said, code=125, works=False)
    with pytest.raises(SetupError, match=f"sandboxes of {program}: it does not work here: (.|\n)*'{program} ps' works"):
        provider(program)


def test_bubblewrap_that_does_not_work_is_said_before_anything_is_asked_of_it(path: Path) -> None:
    (path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (path / "bwrap").chmod(0o755)
    with pytest.raises(SetupError, match=r"sandboxes of bwrap: .* user namespaces: bwrap: No permissions to create"):
        provider("bwrap")


@pytest.mark.parametrize("image", ["localhost/nothing", "nothing", "UPPER/x", "registry.invalid/x"])
def test_podman_itself_says_of_an_image_that_it_is_not_there(image: str) -> None:
    with kind_of("podman"), pytest.raises(SetupError, match=f"nothing runs in the image {image}: "):
        provider("podman").start("none", image, None)


def test_podman_itself_says_of_an_image_that_nothing_runs_in_it(tmp_path: Path) -> None:
    with kind_of("podman"):
        (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nENV PATH=/nowhere\n")
        tag = f"{IMAGE}-nothing"
        subprocess.run(["podman", "build", "--tag", tag, str(tmp_path)], check=True, capture_output=True, timeout=120)
        try:
            with pytest.raises(SetupError, match="It must have bash"):
                provider("podman").start("none", tag, None)
        finally:
            subprocess.run(["podman", "rmi", "--force", tag], check=True, capture_output=True, timeout=60)


def test_docker_itself_says_that_its_daemon_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SetupError, match=r"sandboxes of docker: it does not work here: .*daemon"):
        provider("docker")


def test_podman_gives_each_sandbox_processes_of_its_own() -> None:
    """Those of one are not counted with another's, though the kernel counts a user's together."""
    many = "i=0; while [ $i -lt 300 ]; do sleep 60 & i=$((i+1)); done; set -- $(jobs -p); echo $#"
    with kind_of("podman") as kind:
        pool = Pool(provider(kind), Limits())
        with pool.open(IMAGE) as one, pool.open(IMAGE) as other:
            assert [each.sandbox.run(many, seconds=60).stdout for each in (one, other)] == ["300\n"] * 2
        pool.close()
