from __future__ import annotations

from typing import Any, Literal

import pytest

from miles_lite.config.places import Hosts, Topology
from miles_lite.errors import UserError
from miles_lite.stack import placement


@pytest.mark.parametrize(
    ("topology", "train", "engines"),
    [
        (Topology(actor_num_gpus_per_node=2, rollout_num_gpus=2, colocate=True), 2, 2),
        (Topology(actor_num_gpus_per_node=2, rollout_num_gpus=1, colocate=True), 2, 1),
        (Topology(actor_num_gpus_per_node=4, colocate=True, rollout_num_gpus_per_engine=2), 4, 2),
        (Topology(actor_num_gpus_per_node=2, rollout_num_gpus=4, rollout_num_gpus_per_engine=2), 2, 2),
        (Topology(), 1, 1),
    ],
)
def test_topology_counts_ranks_and_engines(topology: Topology, train: int, engines: int) -> None:
    assert topology.world_size == train
    assert topology.num_engines == engines


def test_too_few_slots_are_refused_with_what_was_asked_and_what_there_is() -> None:
    with pytest.raises(
        UserError, match=r"asked for 8 slots of 1 CPU \(8 CPU\), this Ray cluster has 4, of which 2 free"
    ):
        placement._check_room({"CPU": 1.0}, 8, {"CPU": 2.0}, {"CPU": 4.0})


def layout(*homes: tuple[str, int], device: Literal["cpu", "cuda"] = "cuda") -> placement.Layout:
    places = [placement.Home((10, 0, 0, 1), node, gpu) for node, gpu in homes]
    return placement.Layout(None, device, train_bundles=(), engine_slots=tuple(range(len(homes))), homes=places)


def test_the_gpus_of_a_server_are_neighbours_on_one_node() -> None:
    layout(("a", 2), ("a", 3), ("b", 0)).check_neighbours([0, 1], "engine 0")
    layout(("a", 0), ("a", 0), device="cpu").check_neighbours([0, 1], "engine 0")
    assert layout(("a", 0), ("b", 0)).machines([0, 1]) == 1  # two Ray nodes at one address
    for homes in ([("a", 1), ("a", 3)], [("a", 3), ("b", 0)], [("a", 1), ("a", 0)]):
        with pytest.raises(UserError, match=r"engine 0 needs 2 neighbouring slots of one node, Ray gave it .* a:"):
            layout(*homes).check_neighbours([0, 1], "engine 0")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="this Ray cluster has no GPU"):
        placement._device(Topology(device="cuda"), {"CPU": 8.0})
    assert placement._device(Topology(), {"CPU": 8.0, "GPU": 1.0}) == "cuda"
    assert placement._device(Topology(device="cpu"), {"GPU": 1.0}) == "cpu"


def test_session_servers_spread_over_nodes_that_tell_their_own_address() -> None:
    nodes: dict[str, Any] = {"here": "n2", "alive": ["n3", "n2", "n1"]}
    assert placement.service_nodes(Hosts(), **nodes) == ["n2"]
    assert placement.service_nodes(Hosts(bind_host="0.0.0.0"), **nodes) == ["n2", "n1", "n3"]
    assert placement.service_nodes(Hosts(bind_host="0.0.0.0", advertise_host="head"), **nodes) == ["n2"]
