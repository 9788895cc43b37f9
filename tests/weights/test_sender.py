from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from miles_lite.weights.folder import write_folder
from miles_lite.weights.sender import Sender, published_state
from miles_lite.weights.transformers_compat import import_transformers

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.int64)
SIZE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}

states = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.builds(
        lambda shape, dtype: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype),
        st.lists(st.integers(1, 5), min_size=1, max_size=3),
        st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(states, st.integers(1, 400))
def test_buckets_hold_every_tensor_once_in_order_aligned_and_no_larger_than_asked(state: dict[str, Tensor], limit: int):
    sender = Sender(state, device=CPU, bucket_bytes=limit)
    assert [name for bucket in sender.buckets for name in bucket.names] == list(state)
    for index, bucket in enumerate(sender.buckets):
        dtype = getattr(torch, bucket.dtype)
        flat = sender._flatten(index)
        assert len(bucket.names) == 1 or flat.nbytes <= limit
        pieces = torch.split(flat, [state[name].nbytes for name in bucket.names])
        for name, shape, piece in zip(bucket.names, bucket.shapes, pieces, strict=True):
            assert torch.equal(piece.view(dtype).reshape(shape), state[name])


def test_each_process_gets_a_handle_of_its_own_that_opens_the_same_memory():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    sender = Sender(state, device=CPU, bucket_bytes=1 << 20)
    first, second = sender.share(0, copies=2)
    opened = [pickle.loads(handle) for handle in (first, second)]
    for each in opened:
        meta = each["metadata"][1]
        assert (meta.name, meta.shape, meta.dtype, meta.start_idx, meta.end_idx) == ("b", (4,), torch.float32, 24, 40)
        assert torch.equal(each["flattened_tensor"][24:40].view(torch.float32), state["b"])
    opened[0]["flattened_tensor"].zero_()
    assert not opened[1]["flattened_tensor"].any()


@pytest.mark.parametrize("kind", ["plain", "tied", "experts"])
def test_what_is_sent_has_the_names_shapes_and_values_of_the_folder(tmp_path: Path, kind: str):
    transformers = import_transformers()
    if kind == "experts":
        config = transformers.Qwen3MoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        config = transformers.Qwen3Config(**SIZE, tie_word_embeddings=kind == "tied")
        model = transformers.Qwen3ForCausalLM(config)
    state = dict(model.state_dict())
    write_folder(model, state, tmp_path / "folder", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "folder" / "model.safetensors")
    sent = published_state(model, state, torch.bfloat16)
    assert set(sent) == set(stored)
    assert all(torch.equal(sent[name], stored[name]) for name in stored)
