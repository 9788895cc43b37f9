"""Which environment variables travel from the driver to every actor.

Invariant: what the caller set explicitly (in `extra`) is never overridden; a variable that is not listed stays home. No
secret is listed: a runtime_env is shown in the Ray dashboard.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from miles_lite.process import admin_key

PROPAGATED = (
    "PYTHONPATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "LITELLM_LOCAL_MODEL_COST_MAP",
    "GLOO_SOCKET_IFNAME",
    "WANDB_BASE_URL",
    "WANDB_MODE",
    "WANDB_DIR",
)
PROPAGATED_PREFIXES = ("NCCL_", "SGLANG_", "MILES_LITE_")
EXTENSION = "MILES_LITE_PROPAGATE_ENV"
"""Names more variables, separated by commas; a trailing * makes a prefix."""

KEEP_DEVICES_VISIBLE = {
    f"RAY_EXPERIMENTAL_NOSET_{name}": "1"
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ASCEND_RT_VISIBLE_DEVICES",
        "HABANA_VISIBLE_MODULES",
        "NEURON_RT_VISIBLE_CORES",
        "TPU_VISIBLE_CHIPS",
        "ONEAPI_DEVICE_SELECTOR",
    )
}
"""For engines on GPUs: Ray assigns devices but does not hide the others; the server is told where to begin."""


def actor_env(
    extra: Mapping[str, str] | None = None, *, gpu: bool = False, driver: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`env_vars` for an actor's runtime_env: the driver's listed variables, then `extra`, which wins.

    gpu     the actor is an engine on GPUs
    driver  the driver's environment (default: os.environ)
    """
    source = os.environ if driver is None else driver
    asked = [name.strip() for name in source.get(EXTENSION, "").split(",") if name.strip()]
    names = {*PROPAGATED, *(name for name in asked if not name.endswith("*"))}
    prefixes = (*PROPAGATED_PREFIXES, *(name[:-1] for name in asked if name.endswith("*")))
    carried = {name: value for name, value in source.items() if name in names or name.startswith(prefixes)}
    carried.pop(admin_key.VARIABLE, None)
    return {**carried, **(KEEP_DEVICES_VISIBLE if gpu else {}), **(extra or {})}
