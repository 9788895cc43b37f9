"""Recorded experts route the trainer's tokens, forward, backward and recomputed, however the tokens are packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from miles_lite.config.choices import RoutingReplay
from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.sample import Sample
from miles_lite.train.building import build_learner
from miles_lite.train.packing import Form, forward_passes
from miles_lite.train.policy import Policy, replayed
from miles_lite.train.routing_replay import COUNTS, UNKNOWN, Replay, Routing
from tests.metric_names import undocumented
from tests.models import make_tiny_moe
from tests.train.families import SIZE, furthest, gradients, make_model, obvious_logprobs
from tests.train.helpers import joined, make_batch, make_config, make_samples, shares_of

LAYERS, EXPERTS, K = SIZE["num_hidden_layers"], 8, 2
ROUTING = Routing(LAYERS, K)
CPU = torch.device("cpu")


def routed_samples() -> list[Sample]:
    """Branches of a trunk with experts at random, alike where tokens are shared; the last ones share the trunk's
    tokens but not its experts, and have none."""
    trunk, other = make_samples(8, 2)
    branch = joined(trunk, other, at=trunk.prompt_length + 1)
    again = joined(trunk, other, at=0)
    samples = [trunk, branch, trunk.truncate(len(trunk) - 1), joined(trunk, other, at=len(trunk)), again]
    for seed, sample in enumerate(samples):
        random = np.random.default_rng(0 if seed < 3 else seed)
        rows = np.argsort(random.random((400, LAYERS, EXPERTS)), -1)[: len(sample) - 1, :, :K]
        sample.routed_experts = rows.astype(np.uint8)
    samples[-1].routed_experts = None
    return samples


WEIGHTS = (0.5, -1.0, 2.0, 0.25, 1.5)


def route_by_hand(model: Any, sample: Sample) -> None:
    """Qwen3-MoE's routers, written out with the sample's rows; without any, as they are."""
    for number, layer in enumerate(model.model.layers):
        gate = layer.mlp.gate
        gate.__dict__.pop("forward", None)
        if sample.routed_experts is None:
            continue
        last = sample.routed_experts[-1:]  # of the last token, which predicts nothing
        rows = torch.from_numpy(np.concatenate([sample.routed_experts, last])[:, number].astype(np.int64))

        def forward(hidden: Tensor, gate: Any = gate, rows: Tensor = rows) -> tuple[None, Tensor, Tensor]:
            scores = linear(hidden.reshape(-1, gate.hidden_dim), gate.weight).softmax(-1)
            chosen = scores.gather(1, rows)
            return None, chosen / chosen.sum(-1, keepdim=True), rows

        gate.forward = forward


def by_hand() -> tuple[float, dict[str, Tensor]]:
    model, total = make_model("qwen3_moe"), 0.0
    for sample, weight in zip(routed_samples(), WEIGHTS, strict=True):
        route_by_hand(model, sample)
        loss = weight * obvious_logprobs(model, sample).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@pytest.mark.parametrize(("form", "recomputed"), [(Form.PADDED, False), (Form.PACKED, True), (Form.TREE, True)])
def test_loss_and_gradients_are_those_of_routers_written_by_hand(form: Form, recomputed: bool) -> None:
    expected, by_sample = by_hand()
    model = make_model("qwen3_moe")
    if recomputed:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model)
    policy.replay = Replay(model)
    batch = make_batch(routed_samples(), WEIGHTS)
    passes = forward_passes(batch, range(5), shares=shares_of(batch), limit=70, form=form, routing=ROUTING)
    total = 0.0
    for packed in passes:
        loss = policy(packed)[0] @ packed.advantages
        loss.backward()
        total += loss.item()
    assert len(passes) > 1
    assert total == pytest.approx(expected, rel=1e-5)
    assert furthest(gradients(model), by_sample) <= 1e-5


def test_tokens_are_one_node_only_where_they_were_routed_alike() -> None:
    samples = routed_samples()
    batch = make_batch(samples, WEIGHTS)

    def computed(routing: Routing | None) -> int:
        passes = forward_passes(batch, range(5), shares=shares_of(batch), limit=10**6, form=Form.TREE, routing=routing)
        return sum(packed.tokens.numel() for packed in passes)

    assert computed(None) < computed(ROUTING) < sum(map(len, samples))


def test_tokens_without_a_record_and_routes_that_differ_are_counted() -> None:
    model = make_model("qwen3_moe")
    policy = Policy(model)
    policy.replay = replay = Replay(model)
    batch = make_batch(routed_samples(), WEIGHTS)

    def counted() -> dict[str, int]:
        (packed,) = forward_passes(
            batch, [0, 4], shares=shares_of(batch), limit=10**6, form=Form.PACKED, routing=ROUTING
        )
        policy(packed)
        return {name: int(count) for name, count in replay.counts().items()}

    trunk, unknown = (int(np.flatnonzero(batch.samples[at].loss_mask)[-1]) for at in (0, 4))
    first = counted()
    assert tuple(first) == COUNTS
    assert (first["routes_replayed"], first["routes_missing"]) == (trunk, unknown)
    assert first["routes_differ"] > trunk / 2
    rows = np.full((len(batch.samples[0]) - 1, LAYERS, K), UNKNOWN, np.int32)
    batch.samples[0].routed_experts = rows
    assert counted()["routes_missing"] == trunk + unknown
    for layer, own in replay.own.items():
        rows[:trunk, layer] = own[:trunk].numpy()
    assert counted() == {"routes_replayed": trunk, "routes_missing": unknown, "routes_differ": 0}


ON = Algorithm(use_rollout_routing_replay=RoutingReplay.ON)


def test_a_model_is_probed_before_it_trains() -> None:
    assert replayed(Policy(make_model("qwen3_moe")), CPU, ON) == ROUTING
    assert replayed(Policy(make_model("qwen3_moe")), CPU, Algorithm()) is None
    with pytest.raises(UserError, match="no router that chooses experts"):
        replayed(Policy(make_model("qwen3")), CPU, ON)


def own_way(gate: Any) -> Callable[[Tensor], object]:
    """A router that asks torch.topk, and does as it likes."""

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = linear(hidden.reshape(-1, gate.hidden_dim), gate.weight).softmax(-1)
        torch.topk(scores, gate.top_k, dim=-1)
        values, indices = scores.sort(-1, descending=True)
        return scores, values[:, : gate.top_k], indices[:, : gate.top_k]

    return forward


def no_choice(gate: Any) -> Callable[[Tensor], object]:
    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = linear(hidden.reshape(-1, gate.hidden_dim), gate.weight).softmax(-1).sort(-1)
        return values, values[:, -2:], indices[:, -2:]

    return forward


@pytest.mark.parametrize(("forward", "words"), [(own_way, "does not follow"), (no_choice, "does not choose 2 of 8")])
def test_a_router_that_is_not_overruled_stops_the_run(forward: Callable[[Any], Any], words: str) -> None:
    model = make_model("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.gate.forward = forward(layer.mlp.gate)
    with pytest.raises(UserError, match=words):
        replayed(Policy(model), CPU, ON)


def test_samples_must_fit_the_model_and_bring_rows_where_that_is_strict() -> None:
    sample = routed_samples()[-1]
    with pytest.raises(UserError, match="strict: a sample has no routed experts"):
        Routing(LAYERS, K, strict=True).rows(sample, 3)
    sample.routed_experts = np.zeros((len(sample) - 1, LAYERS, 4), np.uint8)
    with pytest.raises(UserError, match="engines report 4 experts in 3 layers, but the trainer's model chooses 2 in 3"):
        ROUTING.rows(sample, 3)


@pytest.mark.usefixtures("process_group")
def test_training_replays_and_logs_how_far_routers_have_come(tmp_path: Path) -> None:
    folder = make_tiny_moe(tmp_path / "moe")
    samples = make_samples(3, 3)
    random = np.random.default_rng(0)
    for sample in samples[:2]:
        sample.routed_experts = np.argsort(random.random((len(sample) - 1, 2, 8)), -1)[:, :, :2].astype(np.uint8)
    batch = make_batch(samples, [1.0, -1.0, 0.5])
    learner = build_learner(make_config(folder, "--use-rollout-routing-replay"), device=CPU)
    metrics = learner.train(batch)
    assert undocumented(metrics) == set()
    assert metrics["train/routes_differ"] > 0.5
    inputs = [int(np.flatnonzero(sample.loss_mask)[-1]) for sample in samples]
    assert metrics["train/routes_missing"] == pytest.approx(inputs[2] / sum(inputs))
    strict = build_learner(make_config(folder, "--use-rollout-routing-replay", "strict"), device=CPU)
    with pytest.raises(UserError, match="strict"):
        strict.train(batch)


def test_padding_is_no_token_without_a_record() -> None:
    model = make_model("qwen3_moe")
    policy = Policy(model)
    policy.replay = Replay(model)
    batch = make_batch(routed_samples(), WEIGHTS)
    passes = forward_passes(batch, range(4), shares=shares_of(batch), limit=10**6, form=Form.PADDED, routing=ROUTING)
    assert any(
        packed.tokens.numel() > int((packed.experts >= 0).all(-1).all(-1).sum())
        for packed in passes
        if packed.experts is not None
    )
    for packed in passes:
        policy(packed)
        assert policy.replay.counts()["routes_missing"] == 0


def test_routers_of_models_that_run_one_sequence_per_row_are_led_too() -> None:
    assert replayed(Policy(make_model("qwen3_next")), CPU, ON) == ROUTING
