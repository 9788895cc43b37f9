from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from miles_lite.config.engines import Engines
from miles_lite.config.places import Topology
from miles_lite.errors import UserError
from miles_lite.stack.engine_plans import check_engines, describe_plans, plan_engines

GROUPS = """
sglang:
  - name: default
    num_gpus_per_engine: 1
    server_groups:
      - {worker_type: prefill, num_gpus: 2, overrides: {chunked-prefill-size: 4096}}
      - {worker_type: placeholder, num_gpus: 2, num_gpus_per_engine: 2}
      - {worker_type: decode, num_gpus: 4, num_gpus_per_engine: 2}
"""


def written(folder: Path, text: str) -> Topology:
    """Eight GPUs, divided as a file says."""
    (folder / "groups.yaml").write_text(text)
    return Topology(rollout_num_gpus=8, sglang_config=str(folder / "groups.yaml"))


def test_engines_are_alike_by_default_and_divided_on_request():
    topology = Topology(rollout_num_gpus=6, rollout_num_gpus_per_engine=2)
    plain = plan_engines(topology)
    assert [(plan.role, plan.slots, plan.first_slot) for plan in plain] == [("regular", 2, at) for at in (0, 2, 4)]
    divided = plan_engines(dataclasses.replace(topology, prefill_num_servers=1))
    assert [plan.role for plan in divided] == ["prefill", "decode", "decode"]
    assert describe_plans(divided) == "starting 3 engine(s)"


def test_groups_of_a_file_fill_the_slots_in_order(tmp_path: Path):
    plans = plan_engines(written(tmp_path, GROUPS))
    seen = [(plan.index, plan.role, plan.slots, plan.first_slot) for plan in plans]
    assert seen == [(0, "prefill", 1, 0), (1, "prefill", 1, 1), (2, "decode", 2, 4), (3, "decode", 2, 6)]
    assert plans[0].overrides == {"chunked_prefill_size": 4096}
    assert plans[3].overrides == {}


def test_an_engine_bigger_than_a_node_fills_its_nodes():
    topology = Topology(rollout_num_gpus=8, rollout_num_gpus_per_engine=4, num_gpus_per_node=2)
    _, second = plan_engines(topology)
    assert second.nodes == 2
    assert [second.on_node(rank) for rank in range(2)] == [slice(4, 6), slice(6, 8)]
    with pytest.raises(UserError, match="--num-gpus-per-node 3 must divide it"):
        plan_engines(dataclasses.replace(topology, num_gpus_per_node=3))


def test_an_option_that_sglang_does_not_have_is_refused_also_in_a_group(tmp_path: Path):
    check_engines(written(tmp_path, GROUPS), Engines())
    with pytest.raises(UserError, match="did you mean --sglang-chunked-prefill-size"):
        check_engines(written(tmp_path, GROUPS.replace("chunked", "chunk")), Engines())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GROUPS.replace("num_gpus: 4", "num_gpus: 2"), "groups have 6 GPUs, --rollout-num-gpus gives 8"),
        (GROUPS.replace("num_gpus: 4", "num_gpus: 3"), "num_gpus 3 must be a multiple of num_gpus_per_engine 2"),
        (GROUPS.replace("decode", "decoder"), "worker_type 'decoder'"),
        (GROUPS.replace("overrides", "override"), "unknown keys override"),
        ("sglang: [{}, {}]", "one model is served"),
        ("sglang: [{name: a}]", "expected a list `server_groups`"),
        ("a: [", "groups.yaml: while parsing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(tmp_path: Path, text: str, words: str):
    with pytest.raises(UserError, match=words):
        plan_engines(written(tmp_path, text))


def test_external_engines_take_no_slots():
    topology = Topology(rollout_external_engine_addrs=("10.0.0.7:30000", "http://node:1"))
    assert topology.rollout_slots == 0
    plans = plan_engines(topology)
    assert [plan.external_url for plan in plans] == ["http://10.0.0.7:30000", "http://node:1"]
    assert describe_plans(plans) == "joining 2 engine(s) that run already"
    with pytest.raises(UserError, match="exclude each other"):
        plan_engines(dataclasses.replace(topology, prefill_num_servers=1))


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ("tp_si", "decided by --rollout-num-gpus-per-engine"),
        ("dev", "--device"),
        ("admin_api", "write --sglang-admin-api"),
    ],
)
def test_the_beginning_of_an_option_is_no_way_around_what_becomes_of_it(short: str, words: str):
    with pytest.raises(UserError, match=words):
        check_engines(Topology(), Engines(sglang_args={short: "2"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xd9\x00", "codec can't decode"),
        (b"[" * 5000, "groups.yaml"),
        (b"sglang: [{server_groups: [{num_gpus: 1, 7: 8}]}]", "unknown keys 7"),
        (b"sglang: [{server_groups: [{num_gpus: true}]}]", "num_gpus True must be"),
    ],
)
def test_a_file_that_is_no_yaml_of_groups_is_named(tmp_path: Path, text: bytes, words: str):
    (tmp_path / "groups.yaml").write_bytes(text)
    with pytest.raises(UserError, match=words):
        plan_engines(Topology(sglang_config=str(tmp_path / "groups.yaml")))
