"""Models are loaded as they are to be trained: which attention, which layers recompute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miles_lite.config.parallel import Compute
from miles_lite.errors import UserError
from miles_lite.train.data import Replicated
from miles_lite.train.loading import empty_model, fill, layers_of, load_model


def block(count: int) -> Compute:
    return Compute(recompute_granularity="full", recompute_method="block", recompute_num_layers=count)


@pytest.mark.parametrize(
    ("compute", "runs"),
    [
        (Compute(), [1, 1]),
        (Compute(recompute_granularity="selective"), [1, 1]),
        (Compute(gradient_checkpointing=True), [2, 2]),
        (Compute(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1), [2, 2]),
        (block(1), [2, 1]),
    ],
)
def test_the_layers_that_are_told_to_run_once_more_in_the_backward_pass(
    compute: Compute, runs: list[int], model_dir: Path
) -> None:
    model = load_model(model_dir, compute)
    counts = [0, 0]
    for number, layer in enumerate(layers_of(model)):

        def count(*_: object, number: int = number) -> None:
            counts[number] += 1

        layer.get_submodule("mlp").register_forward_pre_hook(count)
        assert not any(module.training for module in layer.modules() if module is not layer)
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert counts == runs


def test_attention_of_transformers_takes_one_sequence_per_row(model_dir: Path) -> None:
    policy = Replicated(Compute(attn_implementation="eager")).load(model_dir)
    assert policy.unpackable is not None
    assert "--attn-implementation eager" in policy.unpackable
    assert Replicated().load(model_dir).unpackable is None


def test_an_empty_model_is_filled_to_what_transformers_loads(model_dir: Path, tmp_path: Path) -> None:
    model = empty_model(model_dir)
    assert all(parameter.is_meta for parameter in model.parameters())
    fill(model, model_dir, device=torch.device("cpu"))
    whole = load_model(model_dir)
    assert all(torch.equal(each, whole.state_dict()[name]) for name, each in model.state_dict().items())
    ids = torch.arange(8)[None]
    assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"has no \*.safetensors"):
        fill(empty_model(tmp_path), tmp_path, device=torch.device("cpu"))
