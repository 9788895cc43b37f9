"""Logprobs without logits: equal to the obvious way in float64, in memory that tokens do not add to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import linear_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from miles_lite.train.head import Vocabulary, score
from miles_lite.train.mesh import reach_store
from tests.train.ranks import running

TOKENS, WIDTH, WORDS = 37, 24, 101


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, weight, bias = normal(TOKENS, WIDTH), normal(WORDS, WIDTH), normal(WORDS)
    each = {"hidden": hidden, "weight": weight, "bias": bias}
    return {
        **{name: value.to(dtype).requires_grad_() for name, value in each.items()},
        "targets": torch.randint(0, WORDS, (TOKENS,), generator=draw),
        "temperatures": (torch.rand(TOKENS, generator=draw, dtype=torch.float64) + 0.5).to(torch.float32),
        "of_logprobs": normal(TOKENS).to(dtype),
        "of_entropy": normal(TOKENS).to(dtype),
    }


def obvious(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = given["hidden"] @ given["weight"].t() + given["bias"]
    distribution = torch.log_softmax(logits / given["temperatures"].to(logits.dtype)[:, None], -1)
    logprobs = distribution.gather(1, given["targets"][:, None])[:, 0]
    return logprobs, -(distribution.exp() * distribution).sum(-1)


def own(given: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    names = ("hidden", "weight", "targets", "temperatures")
    return score(*(given[name] for name in names), bias=given["bias"], **options)


def close(got: Tensor | None, expected: Tensor | None, *, within: float = 1e-6) -> None:
    assert got is not None
    assert expected is not None
    far = (got.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm()
    assert far.item() < within


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("elements", [WORDS, 5 * WORDS, 1 << 25])
def test_values_and_gradients_are_those_of_float64(entropy_gradient: bool, elements: int) -> None:
    exact, given = inputs(torch.float64), inputs()
    logprobs, entropy = obvious(exact)
    loss = logprobs @ exact["of_logprobs"]
    (loss + entropy @ exact["of_entropy"] if entropy_gradient else loss).backward()
    got, got_entropy = own(given, entropy_gradient=entropy_gradient, elements=elements)
    close(got, logprobs)
    close(got_entropy, entropy)
    assert got_entropy.requires_grad == entropy_gradient
    loss = got @ given["of_logprobs"]
    (loss + got_entropy @ given["of_entropy"] if entropy_gradient else loss).backward()
    for name in ("hidden", "weight", "bias"):
        close(given[name].grad, exact[name].grad)


def test_torch_is_of_the_same_opinion() -> None:
    given, other = inputs(), inputs()
    weight = given["of_logprobs"]
    scaled = other["hidden"] / other["temperatures"][:, None]
    expected = -linear_cross_entropy(scaled, other["weight"], other["targets"], reduction="none")
    names = ("hidden", "weight", "targets", "temperatures")
    got, _ = score(*(given[name] for name in names))
    close(got, expected)
    (got @ weight).backward()
    (expected @ weight).backward()
    for name in ("hidden", "weight"):
        close(given[name].grad, other[name].grad)


def test_half_precision_sums_in_float32() -> None:
    exact, given = inputs(torch.bfloat16), inputs(torch.bfloat16)
    (
        obvious({name: each.float() if each.is_floating_point() else each for name, each in exact.items()})[0].sum()
    ).backward()
    own(given, elements=WORDS)[0].sum().backward()
    for name in ("hidden", "weight", "bias"):
        close(given[name].grad, exact[name].grad, within=2e-2)


def test_a_frozen_head_gets_no_gradient_and_no_tokens_are_no_trouble() -> None:
    given = inputs()
    score(given["hidden"], given["weight"].detach(), given["targets"], given["temperatures"])[0].sum().backward()
    assert given["weight"].grad is None
    assert given["hidden"].grad is not None
    logprobs, _ = score(given["hidden"][:0], given["weight"], given["targets"][:0], given["temperatures"][:0])
    logprobs.sum().backward()
    assert given["weight"].grad is not None
    assert not given["weight"].grad.any()


class Made(TorchDispatchMode):
    """Elements of the tensors that operations made: views, and what was written into another, aside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view and not func._schema.is_mutable:
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_the_logits_of_a_row_never_exist_whole(entropy_gradient: bool) -> None:
    given, chunk = inputs(), 4
    given["hidden"] = torch.randn(200, WIDTH).requires_grad_()
    given["targets"], given["temperatures"] = torch.zeros(200, dtype=torch.int64), torch.ones(200)
    with Made() as made:
        logprobs, entropy = own(given, entropy_gradient=entropy_gradient, elements=chunk * WORDS)
        (logprobs.sum() + entropy.sum()).backward()
    assert max(made.sizes) == max(200 * WIDTH, WORDS * WIDTH)
    assert made.sizes.count(chunk * WORDS) == 3 + entropy_gradient


def run_rank(rank: int, ranks: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    given = inputs()
    first, end = ((0, 51), (51, WORDS))[rank]
    mine = {name: given[name].detach()[first:end].requires_grad_() for name in ("weight", "bias")}
    part = Vocabulary(first, 51, dist.group.WORLD)
    logprobs, entropy = own(given | mine, entropy_gradient=True, vocabulary=part, elements=5 * 51)
    (logprobs @ given["of_logprobs"] + entropy @ given["of_entropy"]).backward()
    gradients = (given["hidden"].grad, mine["weight"].grad, mine["bias"].grad)
    torch.save((logprobs.detach(), entropy.detach(), *gradients), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.e2e
def test_a_vocabulary_over_two_ranks_is_one(tmp_path: Path) -> None:
    with running(run_rank, tmp_path, ranks=2, timeout=120):
        exact = inputs(torch.float64)
        logprobs, entropy = obvious(exact)
        (logprobs @ exact["of_logprobs"] + entropy @ exact["of_entropy"]).backward()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for got in results:
        for one, expected in zip(got[:3], (logprobs, entropy, exact["hidden"].grad), strict=True):
            close(one, expected)
    close(torch.cat([got[3] for got in results]), exact["weight"].grad)
    close(torch.cat([got[4] for got in results]), exact["bias"].grad)
