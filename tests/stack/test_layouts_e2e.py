"""Placement on two Ray nodes that say they have GPUs: layouts can be tested without any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from miles_lite.config.places import Topology
from miles_lite.errors import UserError
from miles_lite.stack.placement import ENGINE_SHARE, TRAIN_SHARE, Layout, place
from tests.clusters import cluster_of_nodes
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
GPUS = 2
"""Per node."""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    with cluster_of_nodes(2, num_cpus=GPUS, num_gpus=GPUS):
        yield


@pytest.fixture(autouse=True)
def all_free(two_nodes: None) -> None:
    """What a test removed, and nodes that have just come, take a moment to be free."""
    wait_until(lambda: ray.available_resources().get("CPU") == ray.available_resources().get("GPU") == 2 * GPUS, "GPUs")


@ray.remote
class Place:
    def look(self) -> tuple[str, int]:
        context = ray.get_runtime_context()
        return context.get_node_id(), int(context.get_accelerator_ids()["GPU"][0])


PLACE: Any = Place


def places(layout: Layout, bundles: tuple[int, ...], share: float) -> list[tuple[str, int]]:
    """Node and GPU of an actor in each bundle, all alive together."""
    actors: list[Any] = [PLACE.options(**layout.options(bundle, share)).remote() for bundle in bundles]
    seen = ray.get([actor.look.remote() for actor in actors], timeout=120)
    for actor in actors:
        ray.kill(actor)
    return list(seen)


def test_trainers_and_engines_share_gpus_or_have_their_own(two_nodes: None):
    shared = place(
        Topology(actor_num_gpus_per_node=2 * GPUS, colocate=True, rollout_num_gpus_per_engine=GPUS), train=True
    )
    assert shared.device == "cuda"
    train = places(shared, shared.train_bundles, TRAIN_SHARE)
    assert train == places(shared, shared.engine_slots, ENGINE_SHARE)
    assert len(set(train)) == 2 * GPUS
    for first in (0, GPUS):  # an engine's GPUs are neighbours on one node
        nodes, gpus = zip(*train[first : first + GPUS], strict=True)
        assert len(set(nodes)) == 1
        assert list(gpus) == list(range(GPUS))
    shared.remove()
    wait_until(lambda: ray.available_resources().get("GPU") == 2 * GPUS, "the GPUs to be free again")

    apart = place(Topology(actor_num_gpus_per_node=GPUS, rollout_num_gpus=GPUS), train=True)
    train, engines = places(apart, apart.train_bundles, TRAIN_SHARE), places(apart, apart.engine_slots, ENGINE_SHARE)
    assert not set(train) & set(engines)
    assert len(set(train) | set(engines)) == 2 * GPUS
    apart.remove()


def test_an_actor_of_each_fits_into_one_slot_and_more_slots_than_gpus_are_refused(two_nodes: None):
    layout = place(Topology(actor_num_gpus_per_node=1, colocate=True), train=True)
    options = [layout.options(layout.train_bundles[0], share) for share in (TRAIN_SHARE, ENGINE_SHARE)]
    both = [PLACE.options(**each).remote() for each in options]
    first, second = ray.get([actor.look.remote() for actor in both], timeout=60)
    assert first == second
    layout.remove()
    wait_until(lambda: ray.available_resources().get("GPU") == 2 * GPUS, "the GPUs to be free again")
    with pytest.raises(UserError, match=f"asked for {2 * GPUS + 1} slots of 1 CPU"):
        place(Topology(rollout_num_gpus=2 * GPUS + 1), train=False)
