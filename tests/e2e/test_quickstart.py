"""The quickstart's task, learned whatever the trainer's mesh, loss and model: `-k lora` runs one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.job import EXAMPLE, ROOT, assert_nothing_left, environment, values
from tests.shared import made_once

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

BAR = 0.75
"""Of a reward that is 0.25 by chance: the mean of the last five rollouts."""

STEPS = 24
VARIANTS: dict[str, list[str]] = {
    "tensor parallel": ["--tensor-model-parallel-size", "2"],
    "context parallel, trees": ["--context-parallel-size", "2"],
    "experts, routes replayed": ["--use-rollout-routing-replay", "strict"],
    "lora": [
        *("--lora-rank", "32", "--lora-alpha", "64", "--lr", "3e-3", "--lr-warmup-iters", "8"),
        *("--lr-decay-style", "cosine", "--num-rollout", "48"),
    ],
    "gspo": ["--loss-type", "gspo", "--eps-clip", "3e-3", "--eps-clip-high", "4e-3"],
    "cispo": ["--loss-type", "cispo"],
    "rloo": ["--advantage-estimator", "rloo"],
    "one step off": ["--max-weight-staleness", "1", "--use-rollout-logprobs"],
    "three steps off": ["--max-weight-staleness", "3", "--use-rollout-logprobs"],
}
"""What each adds to the launcher's flags."""


def prepared(tmp_path_factory: pytest.TempPathFactory, experts: int) -> Path:
    """The quickstart's data of seed 0, made once."""

    def make(folder: Path) -> None:
        argv = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(folder / "data"), "--experts", str(experts)]
        subprocess.run(argv, env=environment("prepare"), check=True, timeout=900)
        (folder / "data" / ".seed-0").touch()

    return made_once(tmp_path_factory, f"quickstart-{experts}", make)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_learned(variant: str, tmp_path: Path, mark: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = prepared(tmp_path_factory, 4 if "experts" in variant else 0)
    (tmp_path / "data").symlink_to(made / "data")
    flags = ["--num-rollout", str(STEPS), "--eval-interval", "100", "--skip-eval-before-train", *VARIANTS[variant]]
    with (tmp_path / "log").open("wb") as log:
        code = subprocess.run(
            [str(ROOT / "launchers" / "quickstart.sh"), *flags],
            env=environment(mark) | {"RUN_DIR": str(tmp_path)},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=2200,
        ).returncode
    assert code == 0, (tmp_path / "log").read_text(errors="replace")[-6000:]
    assert_nothing_left(mark)
    summary = json.loads((tmp_path / "summary.json").read_text())
    print({name: summary[name] for name in ("reward_first5", "reward_last5", "heldout_last", "steps", "seconds")})
    assert summary["reward_last5"] > BAR
    gaps = values(tmp_path, "train/logprob_gap/numerics") if "off" in variant else [summary["logprob_gap_max"]]
    assert max(gaps) <= 1e-4
    assert max(values(tmp_path, "perf/tree_savings_ratio")) > 0.3
    if "experts" in variant:
        assert sum(values(tmp_path, "train/routes_missing")) == 0
