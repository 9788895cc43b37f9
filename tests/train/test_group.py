"""The group on a real Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.init_model.build import init_model
from miles_lite.rollout.stored import Stored
from miles_lite.train.group import TrainError, TrainGroup
from miles_lite.train.loading import load_model
from miles_lite.train.rank import TrainWorker
from tests.clusters import local_cluster
from tests.rollout.helpers import make_rollout
from tests.train.families import obvious_logprobs
from tests.train.helpers import CORPUS, SIZE, make_config, make_samples

pytestmark = pytest.mark.e2e
RANKS = ("--actor-num-gpus-per-node", "2")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(cpus=2):
        yield


def start(config: Config, run_dir: Path) -> tuple[TrainGroup, int]:
    group = TrainGroup(config, strategies=["DEFAULT"] * 2, slot_share=0.5, device="cpu", run_dir=run_dir)
    try:
        return group, group.start(120)
    except BaseException:
        group.stop()
        raise


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        pytest.param(("--tensor-model-parallel-size", "2"), marks=pytest.mark.slow),
        pytest.param(("--context-parallel-size", "2", "--deterministic-mode"), marks=pytest.mark.slow),
    ],
)
def test_training_saves_resumes_exports_and_raises_what_was_good(sizes: tuple[str, ...], tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    init_model(model_dir, corpus=CORPUS, seed=1, **(SIZE | {"kv_heads": 2}))
    saved = str(tmp_path / "checkpoints")
    hf = str(tmp_path / "hf-{rollout_id}")
    config = make_config(model_dir, "--save", saved, "--load", saved, "--save-hf", hf, "--lr", "1e-2", *RANKS, *sizes)
    samples = make_samples(11, 6)
    signs = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    rollouts = [make_rollout(index, 0, sample) for index, sample in enumerate(samples)]
    rollouts[0].stored = Stored(ray.put([samples[0]]))
    group, first = start(config, tmp_path)
    assert first == 0
    for _ in range(3):
        metrics = group.train(0, rollouts, signs)
    group.save(2)
    assert group.export_weights(tmp_path / "weights") > 0
    for _ in range(2):  # the second replaces what the first wrote
        group.save_hf(2)
    group.stop()
    group.stop()
    assert {"train/loss", "train/grad_norm", "train/lr", "perf/actor_train_tok_per_s"} <= set(metrics)
    models = [load_model(folder) for folder in (model_dir, tmp_path / "weights")]
    with torch.no_grad():
        before, after = ([obvious_logprobs(model, sample).sum().item() for sample in samples] for model in models)
    assert [np.sign(b - a) for a, b in zip(before, after, strict=True)] == signs
    whole = {path.name: path.read_bytes() for path in (tmp_path / "hf-2").iterdir()}
    assert whole.keys() == {path.name for path in model_dir.iterdir()}
    assert whole["model.safetensors"] == (tmp_path / "weights" / "model.safetensors").read_bytes()
    assert whole["tokenizer.json"] == (model_dir / "tokenizer.json").read_bytes()
    assert not list(tmp_path.glob(".hf-2*"))

    group, first = start(config, tmp_path)
    assert first == 3
    os.kill(ray.get(group.ranks[1].call(TrainWorker.host_and_pid))[1], signal.SIGKILL)
    with pytest.raises(TrainError, match="train rank 1 died while training"):
        group.train(3, rollouts, signs)
    group.stop()


def test_a_users_mistake_reaches_the_driver_as_it_is(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in"):
        start(make_config(tmp_path / "absent", *RANKS), tmp_path)
