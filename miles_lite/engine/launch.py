"""From an `EngineSpec` to the server's command line and environment.

Invariant: pure functions of their arguments; what the user passed with --sglang-* comes last and wins.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass

from miles_lite.engine import disaggregation
from miles_lite.engine.cpu_shim import with_profile
from miles_lite.engine.sglang_flags import check_options
from miles_lite.engine.spec import EngineSpec
from miles_lite.process.addresses import loopback

POOL_REQUESTS = 64
"""A CPU server's cache holds this many requests of full context length (at most a fifth of the memory)."""

CPU_OPTIONS: Mapping[str, object] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "xgrammar",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.2,
    "dtype": "float32",
    "skip_server_warmup": True,
    "sleep_on_idle": True,
}

CPU_ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

PROFILE_ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_CPU_OMP_THREADS_BIND": "|".join(["0"] * 64),
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "served_model",
}
"""SGLang refuses more ranks than NUMA nodes unless each is given cores. Here each is, for the sake of that check: the
profile has no kernel that would bind threads to them. Of SGLang's models, only the one that is served is imported."""

ENVIRONMENT: Mapping[str, str] = {
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
    "SGLANG_TIMEOUT_KEEP_ALIVE": "75",
    "PYTHONUNBUFFERED": "1",
}
"""Defaults that the caller's environment overrides: /health answers without generating a token; idle connections live
longer than clients keep them, so that none closes under a request."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is known only on the machine the server starts on. `dist_init_addr` is where the nodes of an engine meet:
    host:port of the first; None for an engine on one node."""

    port: int
    bootstrap_port: int | None = None
    base_gpu_id: int | None = None
    dist_init_addr: str | None = None


def command(spec: EngineSpec, place: Placement, *, known: Set[str]) -> list[str]:
    """The server's argv. `known`: options of the installed SGLang, empty when unknown. UserError for an unknown one."""
    given = {name.replace("-", "_"): value for name, value in spec.engines.sglang_args.items()}
    check_options(given, known)
    options = {**_defaults(spec, place, known), **given}
    options |= {"host": spec.hosts.bind_host, "port": place.port}
    if spec.nodes > 1:
        options |= {"nnodes": spec.nodes, "node_rank": spec.node_rank, "dist_init_addr": place.dist_init_addr}
    if place.bootstrap_port is not None:
        options["disaggregation_bootstrap_port"] = place.bootstrap_port
    return [sys.executable, "-m", "sglang.launch_server", *_argv(options)]


def environment(spec: EngineSpec, inherited: Mapping[str, str], *, profile: bool) -> dict[str, str]:
    """The server's environment: `inherited`, completed; with `profile` the CPU profile leads PYTHONPATH."""
    env = {**ENVIRONMENT, **inherited}
    if spec.device == "cpu":
        env |= CPU_ENVIRONMENT
        if loopback(spec.hosts.bind_host):
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if spec.threads is not None:
            env["OMP_NUM_THREADS"] = str(spec.threads)
    if profile:
        env["PYTHONPATH"] = with_profile(inherited.get("PYTHONPATH"))
        env = {**PROFILE_ENVIRONMENT, **env}
    return env


def _defaults(spec: EngineSpec, place: Placement, known: Set[str]) -> dict[str, object]:
    options: dict[str, object] = {
        "model_path": spec.model_path,
        "random_seed": spec.seed + spec.index,
        "log_level_http": "warning",
    }
    if spec.admin_key is not None:
        options["admin_api_key"] = spec.admin_key
    optional = {"weight_version": spec.weight_version, "incremental_streaming_output": True}
    options |= {name: value for name, value in optional.items() if not known or name in known}
    if spec.updates.offload_rollout and spec.device == "cuda":
        options |= {"enable_memory_saver": True, "enable_weights_cpu_backup": True}
    if spec.slots > 1:
        options["tp_size"] = spec.slots
    if spec.context_length is not None:
        options["context_length"] = spec.context_length
    if place.base_gpu_id is not None:
        options["base_gpu_id"] = place.base_gpu_id
    options |= disaggregation.options(spec)
    if spec.device == "cpu":
        options |= CPU_OPTIONS
        most = spec.routing.sglang_server_concurrency
        options["max_running_requests"] = most
        options["max_total_tokens"] = (spec.context_length or 4096) * min(most, POOL_REQUESTS)
    return options


def _argv(options: Mapping[str, object]) -> list[str]:
    argv: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        argv.append("--" + name.replace("_", "-"))
        if isinstance(value, list | tuple):
            argv += [str(item) for item in value]
        elif value is not True:
            argv.append(str(value))
    return argv
