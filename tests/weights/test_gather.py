"""What is gathered, sent and written is what `save_pretrained` writes, whoever holds it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from miles_lite.config.parallel import Parallelism
from miles_lite.train import mesh
from miles_lite.train.data import Sharded
from miles_lite.weights import tensor_files
from miles_lite.weights.compat import import_transformers
from miles_lite.weights.gather import Published
from miles_lite.weights.sender import Sender
from miles_lite.weights.tensor_files import write_folder
from tests.train.ranks import run

SIZE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
KINDS = ("plain", "tied", "experts")
LIMIT = 3000
SIZES = {
    "sharded": Parallelism(),
    "tensor": Parallelism(tensor_model_parallel_size=2),
    "expert-parallel": Parallelism(expert_model_parallel_size=2),
}
CASES = [(name, kind) for name in SIZES for kind in (KINDS if name != "expert-parallel" else ("experts",))]
CPU = torch.device("cpu")


def make(kind: str) -> Any:
    transformers = import_transformers()
    torch.manual_seed(3)
    if kind == "experts":
        config = transformers.Qwen3MoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
        return transformers.Qwen3MoeForCausalLM(config)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZE, tie_word_embeddings=kind == "tied"))


def stored(model: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Path:
    """The folder that transformers writes of a model, in `dtype`."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    model.save_pretrained(folder, state_dict={name: each.to(dtype) for name, each in state.items()}, **options)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_byte_for_byte_what_save_pretrained_writes(
    tmp_path: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind)
    write_folder(Published(model, model.state_dict(), dtype), tmp_path / "ours")
    assert files(tmp_path / "ours") == files(stored(model, tmp_path / "theirs", dtype))
    monkeypatch.setattr(tensor_files, "SHARD_SIZE", LIMIT)
    write_folder(Published(model, model.state_dict(), dtype), tmp_path / "ours")
    assert len(files(tmp_path / "ours")) > 4
    if kind != "experts":  # there transformers keeps together what are views of one tensor
        assert files(tmp_path / "ours") == files(stored(model, tmp_path / "shards", dtype, max_shard_size=LIMIT))
    shards = [load_file(file) for file in (tmp_path / "ours").glob("*.safetensors")]
    whole = load_file(tmp_path / "theirs" / "model.safetensors")
    assert sum(map(len, shards)) == len(whole)
    assert all(torch.equal(each, whole[name]) for shard in shards for name, each in shard.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_has_the_names_shapes_and_values_of_the_folder(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    weights = Published(model, model.state_dict(), torch.bfloat16)
    assert_sent(weights, stored(model, tmp_path, torch.bfloat16))
    assert not weights._gathered, "everything was given away"


def assert_sent(weights: Published, folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    assert set(weights.layout) == set(expected)
    sender = Sender(weights.layout, weights.fetch, device=CPU, bucket_bytes=LIMIT)
    assert len(sender.buckets) > 3
    for index, bucket in enumerate(sender.buckets):
        pieces = torch.split(sender.prepare(index), [expected[name].nbytes for name in bucket.names])
        for name, shape, piece in zip(bucket.names, bucket.shapes, pieces, strict=True):
            assert torch.equal(piece.view(torch.bfloat16).reshape(shape), expected[name]), name


def test_no_more_is_gathered_than_one_piece_of_a_layer() -> None:
    model = make("experts")
    weights = Published(model, model.state_dict(), torch.float32)
    held = []
    for _ in weights.fetch(list(weights.layout)):
        held.append(sum(tensor.nbytes for tensor in weights._gathered.values()))
    assert max(held) <= max(tensor.nbytes for tensor in model.state_dict().values())


def run_rank(rank: int, ranks: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=60)
    mesh.join(store, rank=rank, ranks=ranks, device=CPU, host="127.0.0.1", timeout=60)
    for name, kind in CASES:
        policy = Sharded(mesh.make_mesh(SIZES[name], device=CPU), CPU).load(out / f"{kind}-model")
        weights = Published(policy.model, policy.weights(), torch.bfloat16)
        for _ in range(2):
            if rank > 0:
                weights.follow()
                continue
            with contextlib.closing(weights):
                write_folder(weights, out / name / kind)
        if rank > 0:
            weights.follow()
        else:
            with contextlib.closing(weights):
                next(iter(weights.fetch(list(weights.layout)[3:])))  # broken off: the others are let go
    dist.destroy_process_group()


@pytest.mark.e2e
def test_ranks_that_share_a_model_write_what_one_writes(tmp_path: Path) -> None:
    for kind in KINDS:
        make(kind).save_pretrained(tmp_path / f"{kind}-model")
    run(run_rank, tmp_path, ranks=2, timeout=120)
    for kind in KINDS:
        expected = files(stored(make(kind), tmp_path / kind, torch.bfloat16))
        assert all(files(tmp_path / name / kind) == expected for name, other in CASES if other == kind), kind
