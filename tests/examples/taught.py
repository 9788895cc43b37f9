"""A tiny model that knows its part in the harnesses' episodes by heart, so that a real engine plays them.

Invariant: it is taught the very tokens that a session holds after an episode with a scripted engine, and of those what
the loss mask covers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from miles_lite.init_model.build import init_model
from miles_lite.init_model.warm_start import fit, replace_weights
from miles_lite.sample import Sample
from miles_lite.train.loading import load_model
from miles_lite.train.policy import Policy

STEPS = 60


def make_taught_model(folder: Path, corpus: Sequence[str], play: Callable[[Path], list[Sample]]) -> Path:
    """Write model and tokenizer; the folder. `play(folder)` gives the samples, in the ids of the tokenizer there."""
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128}
    init_model(folder, **sizes, vocab_size=512, context=1024, seed=0, corpus=corpus)
    samples = play(folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = Policy(load_model(folder))
    losses, _ = fit(policy, samples, steps=STEPS, batch=len(samples), lr=6e-3, seed=0)
    assert losses[-1] < 0.05, losses[:: STEPS // 6]
    replace_weights(policy, folder)
    return folder
