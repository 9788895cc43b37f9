from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from miles_lite.config.choices import TransferMode, WorkerType
from miles_lite.config.engines import Engines, WeightUpdates
from miles_lite.engine.features import Features, check, needs, read
from miles_lite.engine.spec import EngineSpec
from miles_lite.errors import UserError

SPEC = EngineSpec(index=0, model_path="m", device="cpu", log_path="log")
TENSOR = WeightUpdates(update_weight_transfer_mode=TransferMode.TENSOR)
BROADCAST = WeightUpdates(update_weight_transfer_mode=TransferMode.DISTRIBUTED)
EXPERTS = Engines(sglang_args={"enable_return_routed_experts": True})
PATHS = (
    "/generate /health_generate /pause_generation /continue_generation /flush_cache /update_weights_from_disk".split()
)
FIELDS = ["input_ids", "sampling_params", "return_logprob", "stream"]


def described(paths: list[str], fields: list[str]) -> dict:
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Generate"}}}}
    schema: dict[str, Any] = {"properties": {field: {} for field in fields}}
    return {
        "paths": {path: {} for path in paths} | {"/generate": {"post": {"requestBody": body}}},
        "components": {"schemas": {"Generate": schema}},
    }


def features(*, paths: list[str] = PATHS, fields: list[str] = FIELDS, **settings) -> Features:
    return read({"version": "0.0.1", **settings}, described(paths, fields))


def test_a_server_that_has_everything_passes():
    assert features().fields == frozenset(FIELDS)
    check(features(), SPEC)


def test_a_server_that_does_not_describe_itself_is_trusted():
    check(read({}, {}), dataclasses.replace(SPEC, updates=TENSOR, worker_type=WorkerType.DECODE))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engines": EXPERTS}, "routed experts .*return_routed_experts"),
        ({"updates": TENSOR}, "from tensors .*no /update_weights_from_tensor.*--update-weight-transfer-mode"),
        (
            {"updates": BROADCAST},
            "by broadcast .*no /init_weights_update_group",
        ),
        ({"updates": WeightUpdates(check_weight_update_equal=True)}, "weight checksums .*--check-weight-update-equal"),
        ({"worker_type": WorkerType.PREFILL}, "disaggregation .*bootstrap_room"),
        ({"updates": WeightUpdates(offload_rollout=True)}, "offloading"),
    ],
)
def test_what_is_missing_is_named_with_the_flag_that_needs_it(changes, words):
    with pytest.raises(UserError, match=rf"SGLang 0.0.1 lacks: (?s:.)*{words}"):
        check(features(), dataclasses.replace(SPEC, **changes))


def test_a_setting_that_the_server_dropped_is_missed():
    spec = dataclasses.replace(SPEC, engines=EXPERTS)
    fields = [*FIELDS, "return_routed_experts"]
    check(features(fields=fields, enable_return_routed_experts=True), spec)
    with pytest.raises(UserError, match=r"routed experts .*is off in the server"):
        check(features(fields=fields, enable_return_routed_experts=False), spec)


def test_a_plain_run_needs_no_more_than_generation_and_folders():
    assert [need.flag for need in needs(SPEC)] == ["every run", "every run"]
