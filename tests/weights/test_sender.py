from __future__ import annotations

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miles_lite.weights.sender import Sender

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.int64)
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
    sender = Sender(state, lambda names: map(state.__getitem__, names), device=CPU, bucket_bytes=limit)
    assert [name for bucket in sender.buckets for name in bucket.names] == list(state)
    for index, bucket in enumerate(sender.buckets):
        dtype = getattr(torch, bucket.dtype)
        flat = sender.prepare(index)
        assert len(bucket.names) == 1 or flat.nbytes <= limit
        pieces = torch.split(flat, [state[name].nbytes for name in bucket.names])
        for name, shape, piece in zip(bucket.names, bucket.shapes, pieces, strict=True):
            assert torch.equal(piece.view(dtype).reshape(shape), state[name])
        assert len(sender._flat) <= 2


def test_each_process_gets_a_handle_of_its_own_that_opens_the_same_memory():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    sender = Sender(state, lambda names: map(state.__getitem__, names), device=CPU, bucket_bytes=1 << 20)
    first, second = sender.share(0, copies=2)
    opened = [pickle.loads(handle) for handle in (first, second)]
    for each in opened:
        meta = each["metadata"][1]
        assert (meta.name, meta.shape, meta.dtype, meta.start_idx, meta.end_idx) == ("b", (4,), torch.float32, 24, 40)
        assert torch.equal(each["flattened_tensor"][24:40].view(torch.float32), state["b"])
    opened[0]["flattened_tensor"].zero_()
    assert not opened[1]["flattened_tensor"].any()
