"""Ranks that share a model need their share of memory, while it is loaded, trained, and sent to engines."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from miles_lite.config.parallel import Parallelism
from miles_lite.train import mesh
from miles_lite.train.data import Replicated, Sharded
from miles_lite.train.learner import Learner
from miles_lite.weights.compat import import_transformers
from miles_lite.weights.gather import Published
from miles_lite.weights.sender import Sender
from tests.train.helpers import make_batch, make_config, make_samples
from tests.train.ranks import run

CPU = torch.device("cpu")
BUCKET = 8 << 20
SHARE = 0.65


def write_large(folder: Path) -> None:
    """About 400 MB in float32, most of it in layers."""
    transformers = import_transformers()
    config = transformers.Qwen3Config(
        vocab_size=288,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def peak() -> int:
    """Bytes this process had in memory at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def run_rank(rank: int, ranks: int, port: int, folder: Path) -> None:
    """Load, two steps, and all buckets of a weight update."""
    torch.set_num_threads(1)
    store = mesh.reach_store("127.0.0.1", port, ranks=ranks, timeout=120)
    mesh.join(store, rank=rank, ranks=ranks, device=CPU, host="127.0.0.1", timeout=120)
    strategy = Sharded(mesh.make_mesh(Parallelism(), device=CPU), CPU) if ranks > 1 else Replicated()
    config = make_config(folder)
    learner = Learner(strategy.load(folder), strategy, CPU, config.algorithm, config.optimizer)
    for step in range(2):
        learner.train(make_batch(make_samples(step, 1), [1.0], rollouts=[ranks]))
    weights = Published(learner.policy.model, learner.policy.weights(), torch.float32)
    if rank > 0:
        weights.follow()
    else:
        with contextlib.closing(weights):
            sender = Sender(weights.layout, weights.fetch, device=CPU, bucket_bytes=BUCKET)
            for number in range(len(sender.buckets)):
                sender.prepare(number)
    (folder / f"peak-{ranks}-{rank}").write_text(str(peak()))
    dist.destroy_process_group()


def peaks(folder: Path, *, ranks: int) -> list[int]:
    run(run_rank, folder, ranks=ranks)
    return [int((folder / f"peak-{ranks}-{rank}").read_text()) for rank in range(ranks)]


@pytest.mark.e2e
@pytest.mark.slow
def test_two_ranks_need_at_most_two_thirds_each(tmp_path: Path) -> None:
    write_large(tmp_path)
    [alone] = peaks(tmp_path, ranks=1)
    shared = peaks(tmp_path, ranks=2)
    print(
        f"alone {alone / 2**20:.0f} MB, shared {[round(each / 2**20) for each in shared]} MB: {max(shared) / alone:.2f}"
    )
    assert max(shared) <= SHARE * alone, (alone, shared)
