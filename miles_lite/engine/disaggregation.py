"""Prefill/decode pairs: what the transfer of a cache between two servers needs.

Invariant: pure but for the one import that tells whether the transfer library loads.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from miles_lite.config.choices import WorkerType
from miles_lite.engine.spec import EngineSpec

PACKAGE = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
LIBRARIES = ("libibverbs1", "libnl-3-200", "libnl-route-3-200")
CPU_BACKEND = "mooncake_tcp"


def options(spec: EngineSpec) -> Mapping[str, str]:
    """SGLang's options of a prefill or decode worker; none for a regular one. On CPU caches travel over TCP."""
    if spec.worker_type == WorkerType.REGULAR:
        return {}
    backend = {"disaggregation_transfer_backend": CPU_BACKEND} if spec.device == "cpu" else {}
    return {"disaggregation_mode": spec.worker_type, **backend}


def missing() -> str | None:
    """Why caches cannot be moved over TCP on this machine, and how to mend it; None when they can."""
    try:
        importlib.import_module("mooncake.engine")
    except ModuleNotFoundError:
        return f"mooncake is not installed: pip install --no-deps {PACKAGE}"
    except ImportError as error:
        return f"mooncake does not load ({error}): apt-get install {' '.join(LIBRARIES)}"
    return None
