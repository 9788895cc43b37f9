"""The trainer's routers, made to choose otherwise, follow the experts that a real engine chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from miles_lite.config.choices import RoutingReplay
from miles_lite.config.training import Algorithm
from miles_lite.sample import Sample
from miles_lite.session.client import SessionClient
from miles_lite.train.loading import load_model
from miles_lite.train.packing import Form, forward_passes
from miles_lite.train.policy import Policy, replayed
from tests.session.conftest import Stack
from tests.train.helpers import make_batch, shares_of

pytestmark = pytest.mark.e2e


def biased(gate: Any, bias: Tensor) -> Any:
    """Qwen3-MoE's router, choosing by scores to which a bias is added that its gates do not have."""

    def forward(hidden: Tensor) -> tuple[None, Tensor, Tensor]:
        scores = linear(hidden.reshape(-1, gate.hidden_dim), gate.weight).softmax(-1)
        chosen = torch.topk(scores + bias, gate.top_k, dim=-1)[1]
        gates = scores.gather(1, chosen)
        return None, gates / gates.sum(-1, keepdim=True), chosen

    return forward


def gap(policy: Policy, samples: list[Sample], *, replay: RoutingReplay) -> float:
    """Largest difference of a trained token's logprob from the engine's, all samples in one tree."""
    routing = replayed(policy, torch.device("cpu"), Algorithm(use_rollout_routing_replay=replay))
    batch = make_batch(samples, np.ones(len(samples)))
    (packed,) = forward_passes(
        batch, range(len(samples)), shares=shares_of(batch), limit=1 << 20, form=Form.TREE, routing=routing
    )
    with torch.no_grad():
        logprobs, _ = policy(packed)
    return float((logprobs - packed.rollout_logprobs).abs().max())


async def test_a_trainer_whose_routers_choose_otherwise_follows_the_engine(stack: Stack) -> None:
    async with SessionClient(stack.url) as client:
        session = await client.create({"temperature": 1.0, "max_new_tokens": 24})
        agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
        messages: list[Any] = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
        for turn in range(2):
            got = await agent.chat.completions.create(model="m", messages=messages)
            messages += [got.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": f"{turn}"}]
        await agent.chat.completions.create(model="m", messages=[*messages[:3], {"role": "user", "content": "again"}])
        samples = await client.collect(session)
        await client.delete(session)
    assert len(samples) == 2
    model = load_model(stack.model)
    draw = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        layer.mlp.gate.forward = biased(layer.mlp.gate, torch.rand(8, generator=draw))
    assert gap(Policy(model), samples, replay=RoutingReplay.OFF) > 1e-2
    assert gap(Policy(model), samples, replay=RoutingReplay.STRICT) <= 1e-4
