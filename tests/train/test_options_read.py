"""An option of the algorithm that a plain run never looks at has a partner, and says so where it is declared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from miles_lite.config.option import declared
from miles_lite.config.training import Algorithm
from miles_lite.sample import Group
from miles_lite.train.advantages import estimate
from miles_lite.train.batching import fetch, make_batches
from miles_lite.train.building import build_learner
from miles_lite.train.flops import Flops
from tests.rollout.helpers import make_rollout
from tests.train.helpers import make_config, make_samples

READ: set[str] = set()
ELSEWHERE = {
    "use_opd": "rules alone: --opd-teacher implies it",
    "opd_teacher_key": "agent workers",
}
"""Options that others read, and who."""


class Watched(Algorithm):
    """Notes what is read of it."""

    def __getattribute__(self, name: str) -> Any:
        READ.add(name)
        return super().__getattribute__(name)


@pytest.mark.usefixtures("process_group")
def test_what_a_plain_step_does_not_read_has_a_partner(model_dir: Path) -> None:
    config = make_config(model_dir)
    values = {field.name: getattr(config.algorithm, field.name) for field in dataclasses.fields(Algorithm)}
    options = Watched(**values)
    config = dataclasses.replace(config, algorithm=options)
    READ.clear()
    rollouts = [make_rollout(at, at // 2, sample, reward=float(at % 2)) for at, sample in enumerate(make_samples(0, 4))]
    groups = [Group(at, {}, rollouts[2 * at : 2 * at + 2]) for at in range(2)]
    trained, advantages = estimate(groups, options)
    flops = Flops(per_token=1.0, per_pair=1.0)
    (batch,) = make_batches(0, trained, advantages, ranks=1, global_batch_size=2, options=options, flops=flops)
    build_learner(config, device=torch.device("cpu")).train(fetch(batch))
    unread = {each.field.name: each for each in declared(Algorithm) if each.field.name not in READ}
    assert {"tis_clip", "gamma", "dppo_kl", "opd_top_k_strategy"} <= unread.keys(), "nothing was watched"
    lonely = {name for name, each in unread.items() if not (each.option.needs or each.with_)}
    assert lonely == ELSEWHERE.keys()
