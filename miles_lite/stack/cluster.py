"""Joins a Ray cluster, or starts one on this machine.

Invariant: a cluster this process started ends with it; one it joined is left as it was found. Ray's token
authentication stays on. What our processes leave in the temp folder is gone when they are. A signal does not cut Ray
short: Ctrl-C counts once Ray has done what it was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import parameter, services

from miles_lite.errors import UserError
from miles_lite.process import scratch
from miles_lite.process.stopping import Interrupts
from miles_lite.stack import worker_start

CONNECT_SECONDS = 90.0
"""How long Ray may take after somebody asked to end."""

DASHBOARD = "MILES_LITE_RAY_DASHBOARD"
"""An environment variable: with 0, a cluster that is started has no dashboard, which takes six CPU seconds or so."""

KEEPER_SECONDS = 5.0
"""How long the end waits for the temp folder to be removed."""


def connect(address: str | None) -> Path:
    """Connect this process to `address`, to RAY_ADDRESS, or to a new local cluster; the folder of Ray's logs. Raises
    UserError, and KeyboardInterrupt when that was asked for meanwhile: then it is not connected."""
    with contextlib.ExitStack() as failed:
        failed.callback(disconnect)
        with Interrupts(deaf=CONNECT_SECONDS):
            _SCRATCH.enter()
            logs = _connect(address)
        failed.pop_all()
        return logs


def joined(address: str | None) -> str | None:
    """The cluster that is joined; None where one is started."""
    return address or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Path]:
    """As `connect`, for the time of its block."""
    logs = connect(address)
    try:
        yield logs
    finally:
        disconnect()


def _connect(address: str | None) -> Path:
    target = joined(address)
    namespace = f"miles_lite-{uuid.uuid4().hex[:8]}"
    logged = bool(os.environ.get("MILES_LITE_LOG_TO_DRIVER"))
    unseen = os.environ.get(DASHBOARD) == "0"
    try:
        with starting(watched=not unseen, logged=logged):
            context: Any = ray.init(
                address=target or "local",
                namespace=namespace,
                log_to_driver=logged,
                configure_logging=False,
                **({} if target else own_cluster(dashboard=False if unseen else None)),
            )
    except SystemExit:  # SIGTERM, which Ray takes for itself while it connects
        raise KeyboardInterrupt from None
    except Exception as error:  # no connection, no folder for sockets; a bare one where a node is too slow to start
        if not isinstance(error, OSError | RuntimeError | UnicodeError) and type(error) is not Exception:
            raise
        where = f"the Ray cluster at {target}" if target else "a local Ray cluster"
        hint = (
            "Check --ray-address / RAY_ADDRESS and `ray status`."
            if target
            else f"Its files are in {os.environ['RAY_TMPDIR']}: RAY_TMPDIR names another, with a short ASCII path."
        )
        raise UserError(f"cannot use {where}: {error}\n  {hint}") from error
    if context.dashboard_url:
        told = f"; it asks for the token that `{_ray_program()} get-auth-token` prints"
        print(f"Ray dashboard: http://{context.dashboard_url}{told}", flush=True)
    return Path(context.address_info["session_dir"]) / "logs"


def actors_page() -> str | None:
    """Where Ray's dashboard shows the actors of the cluster that is connected; None where it has no dashboard."""
    node = ray._private.worker.global_worker.node
    at = None if node is None else node.address_info["webui_url"]
    return f"http://{at}/#/actors" if at else None


def own_cluster(*, dashboard: bool | None) -> dict[str, Any]:
    """Ray's options of a cluster that is started. No worker before an actor asks for one: each of our actors has an
    environment, and so takes none of those that Ray would start, one for each CPU."""
    return {"include_dashboard": dashboard, "_system_config": {"prestart_worker_first_driver": False}}


@contextlib.contextmanager
def starting(*, watched: bool, logged: bool = False) -> Iterator[None]:
    """How Ray starts a cluster in the block.

    In process groups of its own: a terminal's Ctrl-C goes to our whole group, and Ray's dashboard, started with SIGINT
    blocked, lets it through again (multiprocessing's resource tracker does that), so that it would end before us, with
    many words. Its workers by `worker_start`, and what passes their words on to drivers only where they are `logged`.
    Where it is not `watched`, without the processes that only a dashboard asks: the autoscaler's, which has nothing to
    scale, and the dashboard's own, which Ray would start to report usage.
    """
    fewer: dict[str, Any] = {"include_log_monitor": logged, "no_monitor": not watched}
    params = functools.partial(parameter.RayParams, setup_worker_path=worker_start.__file__, **fewer)
    with contextlib.ExitStack() as changes:
        popen = functools.partial(services.ConsolePopen, process_group=0)
        changes.enter_context(_changed(services, ConsolePopen=popen))
        changes.enter_context(_changed(parameter, RayParams=params))
        if not watched:
            changes.enter_context(_changed(services, start_api_server=lambda *given, **named: (None, None)))
        yield


@contextlib.contextmanager
def _changed(module: Any, **values: object) -> Iterator[None]:
    """A module of Ray's with other attributes, for the time of the block."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _ray_program() -> str:
    """How this user starts `ray`: by name, or where it lies beside this interpreter."""
    return "ray" if shutil.which("ray") else str(Path(sys.executable).with_name("ray"))


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    with Interrupts(deaf=CONNECT_SECONDS):
        if ray.is_initialized():
            ray.shutdown()
        _SCRATCH.leave()


class Scratch:
    """The temp folder of everything that this process starts, but for Ray's own files, which stay where they would be:
    people read its logs. Its keeper outlives us, also when we are killed."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[str] | None = None
        self._before: dict[str, str | None] = {}

    def enter(self) -> None:
        if self._keeper is not None:
            return
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", scratch.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self._keeper.stdout is not None
        folder = self._keeper.stdout.readline().strip()
        ray_folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # as Ray itself decides it
        wanted = {"RAY_TMPDIR": ray_folder, scratch.OUTER: scratch.lasting(), "TMPDIR": folder}
        self._before = {name: os.environ.get(name) for name in wanted}
        _set(wanted)

    def leave(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        _set(self._before)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on without us
            keeper.communicate(timeout=KEEPER_SECONDS)


def _set(variables: Mapping[str, str | None]) -> None:
    """Set environment variables; None: it is not to be there."""
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    tempfile.tempdir = None  # look again


_SCRATCH = Scratch()
