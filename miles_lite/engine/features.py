"""What the running SGLang can do is asked of it: version, endpoints, request fields and settings.

Invariant: a feature that the configuration needs and the server lacks stops the engine's start by name; a server that
does not describe itself is trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from miles_lite.config.choices import TransferMode, WorkerType
from miles_lite.engine.spec import EngineSpec
from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonMapping

log = logging.getLogger(__name__)
TIMEOUT = aiohttp.ClientTimeout(total=30.0)
SESSION_UPDATE = ("/begin_weight_update", "/end_weight_update", "/update_weight_version")


@dataclass(frozen=True)
class Features:
    """`fields` are those of a /generate request, `settings` what the server runs with. None: it does not say."""

    version: str
    paths: frozenset[str] | None
    fields: frozenset[str] | None
    settings: Mapping[str, Any]

    def ranks(self, *, otherwise: int) -> int:
        """How many processes the server's weights are divided over."""
        return int(self.settings.get("tp_size") or otherwise)


@dataclass(frozen=True)
class Need:
    """A feature by its name, which flag asks for it, and what a server that has it shows."""

    name: str
    flag: str
    paths: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    setting: str | None = None


def needs(spec: EngineSpec) -> Iterator[Need]:
    """What `spec` cannot do without."""
    yield Need(
        "generation from token ids with logprobs, paused for weight updates",
        "every run",
        paths=("/generate", "/health_generate", "/pause_generation", "/continue_generation", "/flush_cache"),
        fields=("input_ids", "sampling_params", "return_logprob", "stream"),
    )
    mode = f"--update-weight-transfer-mode {spec.updates.update_weight_transfer_mode}"
    yield Need("weight updates from a folder", "every run", paths=("/update_weights_from_disk",))
    if spec.updates.update_weight_transfer_mode == TransferMode.TENSOR:
        yield Need("weight updates from tensors", mode, paths=("/update_weights_from_tensor", *SESSION_UPDATE))
    if spec.updates.update_weight_transfer_mode == TransferMode.DISTRIBUTED:
        group = ("/init_weights_update_group", "/update_weights_from_distributed", "/destroy_weights_update_group")
        yield Need("weight updates by broadcast", mode, paths=(*group, *SESSION_UPDATE))
    if spec.updates.check_weight_update_equal:
        yield Need("weight checksums", "--check-weight-update-equal", paths=("/weights_checker",))
    if spec.engines.returns_experts:
        flag = "--sglang-enable-return-routed-experts"
        yield Need("routed experts", flag, fields=("return_routed_experts",), setting="enable_return_routed_experts")
    if spec.worker_type != WorkerType.REGULAR:
        fields = ("bootstrap_host", "bootstrap_port", "bootstrap_room")
        yield Need("prefill/decode disaggregation", f"worker type {spec.worker_type}", fields=fields)
    if spec.updates.offload_rollout:
        paths = ("/release_memory_occupation", "/resume_memory_occupation")
        saver = "enable_memory_saver" if spec.device == "cuda" else None
        yield Need("offloading", "--offload-rollout", paths=paths, setting=saver)


def check(features: Features, spec: EngineSpec) -> None:
    """Raises UserError naming every feature that `spec` needs and the server lacks."""
    lacks = [(need, _lack(features, need)) for need in needs(spec)]
    missing = [f"{need.name} ({lack}), needed for {need.flag}" for need, lack in lacks if lack]
    if missing:
        raise UserError(
            f"the installed SGLang {features.version} lacks: {'; '.join(missing)}.\n"
            "  Install an SGLang that has it, or leave the flag out."
        )


def _lack(features: Features, need: Need) -> str:
    """What `need` asks for and the server does not show; "" when nothing."""
    lacks = []
    if features.paths is not None:
        lacks += [f"no {path}" for path in need.paths if path not in features.paths]
    if features.fields is not None:
        lacks += [f"no field {field} in /generate" for field in need.fields if field not in features.fields]
    if need.setting is not None and features.settings.get(need.setting, True) is False:
        lacks.append(f"{need.setting} is off in the server")
    return ", ".join(lacks)


async def probe(*, url: str, headers: Mapping[str, str]) -> Features:
    """Ask a healthy server."""
    async with aiohttp.ClientSession(timeout=TIMEOUT, headers=headers) as client:
        settings = await _get(client, f"{url}/server_info") or await _get(client, f"{url}/get_server_info")
        described = await _get(client, f"{url}/openapi.json")
    return read(settings, described)


def read(settings: JsonMapping, described: JsonMapping) -> Features:
    """From the answers of `/server_info` and `/openapi.json` (OpenAPI 3); {} for none."""
    paths = described.get("paths")
    return Features(
        version=str(settings.get("version", "(of unknown version)")),
        paths=None if paths is None else frozenset(paths),
        fields=None if paths is None else _generate_fields(described),
        settings=settings,
    )


def _generate_fields(described: JsonMapping) -> frozenset[str] | None:
    operation = described["paths"].get("/generate", {}).get("post", {})
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = described.get("components", {}).get("schemas", {}).get(name, schema)
    properties = schema.get("properties")
    return None if properties is None else frozenset(properties)


async def _get(client: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with client.get(url) as reply:
            answer = await reply.json() if reply.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.info("%s: %s", url, error)
        return {}
    return answer if isinstance(answer, dict) else {}
