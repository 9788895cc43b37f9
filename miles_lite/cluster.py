"""Joins a Ray cluster, or starts one on this machine.

Invariant: a cluster this process started ends with it; one it joined is left as it was found. Ray's token
authentication stays on.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from pathlib import Path

import ray

from miles_lite.errors import UserError


def connect(address: str | None) -> None:
    """Connect this process to `address`, to RAY_ADDRESS, or to a new local cluster. Raises UserError."""
    target = address or os.environ.get("RAY_ADDRESS")
    namespace = f"miles_lite-{uuid.uuid4().hex[:8]}"
    try:
        context = ray.init(
            address=target or "local",
            namespace=namespace,
            log_to_driver=bool(os.environ.get("MILES_LITE_LOG_TO_DRIVER")),
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError) as error:
        where = f"the Ray cluster at {target}" if target else "a local Ray cluster"
        raise UserError(
            f"cannot use {where}: {error}\n  Check --ray-address / RAY_ADDRESS and `ray status`."
        ) from error
    if context.dashboard_url:
        told = f"; it asks for the token that `{_ray_program()} get-auth-token` prints"
        print(f"Ray dashboard: http://{context.dashboard_url}{told}", flush=True)


def _ray_program() -> str:
    """How this user starts `ray`: by name, or where it lies beside this interpreter."""
    return "ray" if shutil.which("ray") else str(Path(sys.executable).with_name("ray"))


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    if ray.is_initialized():
        ray.shutdown()
