"""Where trainers and engines run: one Ray placement group of slots, shared or divided.

A slot is one GPU and one CPU on a GPU cluster, one CPU elsewhere. Trainers take 0.4 and engines 0.2 of a slot, so that
with --colocate both fit into the same ones; everything else (router, sessions, agents, manager) claims nothing.
Invariant: what cannot be placed is refused with what was asked and what there is, never waited for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from miles_lite.config.choices import Device
from miles_lite.config.places import Hosts, Topology
from miles_lite.errors import UserError
from miles_lite.process.addresses import EVERYWHERE
from miles_lite.stack.environment import actor_env

TRAIN_SHARE = 0.4
ENGINE_SHARE = 0.2
PLACEMENT_TIMEOUT = 60.0


class Home(NamedTuple):
    """Where a bundle is: the node's address and id, and the GPU's number there; 0 for a CPU."""

    address: tuple[int, ...]
    node: str
    gpu: int


@dataclass(frozen=True)
class Layout:
    """A ready placement group and who gets which of its bundles: neighbours are on one node as far as can be."""

    group: PlacementGroup | None
    device: Device
    train_bundles: tuple[int, ...]
    engine_slots: tuple[int, ...]
    homes: Sequence[Home] = field(default=(), repr=False)
    """Of each bundle."""

    def options(self, bundle: int, share: float) -> dict[str, object]:
        """Ray actor options that claim `share` of the slot `bundle`."""
        assert self.group is not None, "there is a group wherever there is a bundle"
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group,
            placement_group_bundle_index=bundle,
            placement_group_capture_child_tasks=False,
        )
        gpus = share if self.device == "cuda" else 0
        return {"num_cpus": share, "num_gpus": gpus, "scheduling_strategy": strategy}

    def machines(self, bundles: Sequence[int]) -> int:
        """How many machines `bundles` are on."""
        return len({self.homes[bundle].address for bundle in bundles})

    def check_neighbours(self, bundles: Sequence[int], what: str) -> None:
        """A server takes the GPUs from its first on: raises UserError, naming `what`, when `bundles` are not those."""
        first, *others = (self.homes[bundle] for bundle in bundles)
        for at, home in enumerate(others, 1):
            if home.node != first.node or (self.device == "cuda" and home.gpu != first.gpu + at):
                places = ", ".join(f"{self.homes[bundle].node[:8]}:{self.homes[bundle].gpu}" for bundle in bundles)
                raise UserError(
                    f"{what} needs {len(bundles)} neighbouring slots of one node, Ray gave it (node:GPU) {places}.\n"
                    "  Make --rollout-num-gpus-per-engine and --num-gpus-per-node fit the nodes, or free what other "
                    "jobs hold there."
                )

    def remove(self) -> None:
        if self.group is not None:
            remove_placement_group(self.group)


def place(topology: Topology, *, train: bool) -> Layout:
    """Reserve the slots of a run, with or without trainers. Needs a connected Ray. Raises UserError."""
    resources = ray.cluster_resources()
    device = _device(topology, resources)
    ranks = topology.world_size if train else 0
    shared = topology.colocate or not train
    slots = max(ranks, topology.rollout_slots) if shared else ranks + topology.rollout_slots
    if slots == 0:  # external engines alone
        return Layout(group=None, device=device, train_bundles=(), engine_slots=())
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if device == "cuda" else {})
    _check_room(bundle, slots, ray.available_resources(), resources)
    group = placement_group([bundle] * slots, strategy="PACK", name=f"miles_lite-{slots}-slots")
    if not group.wait(timeout_seconds=PLACEMENT_TIMEOUT):
        remove_placement_group(group)
        raise UserError(
            f"Ray could not place {slots} bundles of {bundle} within {PLACEMENT_TIMEOUT:.0f} s although the cluster "
            f"has them in total ({resources}): no node has a whole bundle free. See the dashboard."
        )
    first = 0 if shared else ranks
    homes = _homes(group, device)
    bundles = sorted(range(slots), key=homes.__getitem__)
    engines = tuple(bundles[first : first + topology.rollout_slots])
    return Layout(group, device, train_bundles=tuple(bundles[:ranks]), engine_slots=engines, homes=homes)


def _homes(group: PlacementGroup, device: Device) -> list[Home]:
    """Where each of the group's bundles is."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    addresses = {node["NodeID"]: _octets(node["NodeManagerAddress"]) for node in ray.nodes()}
    gpus = _gpus(group) if device == "cuda" else [0] * group.bundle_count
    return [Home(addresses[nodes[bundle]], nodes[bundle], gpu) for bundle, gpu in enumerate(gpus)]


def _octets(address: str) -> tuple[int, ...]:
    """An IP address as numbers, so that .9 comes before .10."""
    return tuple(ipaddress.ip_address(address).packed)


def _gpus(group: PlacementGroup) -> list[int]:
    """The GPU that each bundle has on its node, as Ray numbers them."""
    strategies = [
        PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
        for bundle in range(group.bundle_count)
    ]
    runtime_env = {"env_vars": actor_env()}
    looks = [
        _look.options(num_gpus=1, scheduling_strategy=strategy, runtime_env=runtime_env).remote()
        for strategy in strategies
    ]
    return list(ray.get(looks, timeout=PLACEMENT_TIMEOUT))


@ray.remote(num_cpus=0, max_calls=1)
def _look() -> int:
    return int(ray.get_runtime_context().get_accelerator_ids()["GPU"][0])


def service_nodes(hosts: Hosts, *, here: str, alive: Sequence[str]) -> list[str]:
    """The nodes that session servers are spread over: all `alive` ones when servers bind to every interface and tell
    their own address, else the one that is `here`, whose address is told."""
    spread = hosts.bind_host in EVERYWHERE and hosts.advertise_host is None
    return [here, *sorted(set(alive) - {here})] if spread else [here]


def pinned(node: str) -> dict[str, object]:
    """Ray actor options of a service that stays on `node` and claims no slot."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


def _device(topology: Topology, resources: dict[str, float]) -> Device:
    gpus = resources.get("GPU", 0)
    if topology.device == "cuda" and not gpus:
        raise UserError(
            "--device cuda: this Ray cluster has no GPU. Start its nodes with --num-gpus, or use --device cpu."
        )
    return "cuda" if gpus and topology.device != "cpu" else "cpu"


def _check_room(bundle: dict[str, float], slots: int, free: dict[str, float], total: dict[str, float]) -> None:
    for name in bundle:
        if free.get(name, 0) < slots:
            raise UserError(
                f"not enough {name}s for the placement group: asked for {slots} slots of 1 {name} "
                f"({slots} {name}), this Ray cluster has {total.get(name, 0):g}, of which {free.get(name, 0):g} free.\n"
                "  Lower --actor-num-gpus-per-node or --rollout-num-gpus, share slots with --colocate, or start Ray "
                "with more."
            )
