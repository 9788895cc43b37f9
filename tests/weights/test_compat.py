"""What `weights/compat.py` uses beyond public interfaces is still what it was tested with."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import distributed_c10d

from miles_lite.weights import compat
from miles_lite.weights.compat import import_transformers

TESTED = {"torch": "2.13", "transformers": "5.19", "sglang": "0.5.23"}


def of(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)} (tested with {TESTED[package]})"


def test_torchs_process_groups_are_made_as_before() -> None:
    taken = list(inspect.signature(distributed_c10d._new_process_group_helper).parameters)
    assert taken[:6] == [
        "group_size",
        "group_rank",
        "global_ranks_in_group",
        "backend",
        "store",
        "group_name",
    ], f"{of('torch')}: _new_process_group_helper{taken}"
    assert "timeout" in taken, of("torch")
    assert hasattr(type(distributed_c10d._world), "pg_group_ranks"), f"{of('torch')}: _world has no pg_group_ranks"


def test_transformers_reverts_its_conversions_as_before() -> None:
    transformers = import_transformers()
    from transformers import core_model_loading

    taken = list(inspect.signature(core_model_loading.revert_weight_conversion).parameters)
    assert taken == ["model", "state_dict"], f"{of('transformers')}: revert_weight_conversion{taken}"
    for name in ("_keys_to_ignore_on_save", "save_pretrained", "num_parameters"):
        assert hasattr(transformers.PreTrainedModel, name), f"{of('transformers')}: PreTrainedModel has no {name}"
    source = inspect.getsource(transformers.PreTrainedModel)
    assert "all_tied_weights_keys" in source, f"{of('transformers')}: PreTrainedModel has no all_tied_weights_keys"


def test_transformers_says_which_attention_a_model_takes_as_before() -> None:
    transformers = import_transformers()
    kind = compat.causal_class(transformers.Qwen3Config())
    assert kind is transformers.Qwen3ForCausalLM, f"{of('transformers')}: Qwen3Config makes {kind}"
    assert compat.takes_sdpa(kind), of("transformers")
    assert compat.takes_attention_functions(kind), of("transformers")
    assert not compat.takes_attention_functions(transformers.MambaForCausalLM), of("transformers")
    assert compat.causal_class(transformers.CLIPConfig()) is None, of("transformers")


def test_sglang_reads_buckets_as_before() -> None:
    buckets = pytest.importorskip("sglang.srt.weight_sync.tensor_bucket")
    place = compat.place_in_bucket("a", torch.Size((2, 3)), torch.bfloat16, 8)
    assert isinstance(place, SimpleNamespace)
    fields = {field.name for field in dataclasses.fields(buckets.FlattenedTensorMetadata)}
    assert set(vars(place)) == fields, f"{of('sglang')}: FlattenedTensorMetadata has {sorted(fields)}"
    flat = torch.arange(20, dtype=torch.uint8)
    ((name, tensor),) = buckets.FlattenedTensorBucket(flattened_tensor=flat, metadata=[place]).reconstruct_tensors()
    assert (name, tensor.shape, tensor.dtype) == ("a", (2, 3), torch.bfloat16)
    assert torch.equal(tensor.reshape(-1).view(torch.uint8), flat[8:])
