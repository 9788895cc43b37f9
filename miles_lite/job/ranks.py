"""The trainer's ranks, as every job that trains starts them."""

from __future__ import annotations

import contextlib

from miles_lite.config.options import Config
from miles_lite.job.watch import Watch
from miles_lite.stack.environment import actor_env
from miles_lite.stack.placement import TRAIN_SHARE, Layout
from miles_lite.train.group import TrainGroup

START_TIMEOUT = 900.0
"""Seconds until what a job starts must be ready, where nothing else is said."""


def make_ranks(config: Config, layout: Layout, *, watch: Watch, parts: contextlib.ExitStack) -> TrainGroup:
    """The ranks on the slots of `layout`, not yet ready: stopped with `parts`, and followed by `watch`."""
    options = [layout.options(bundle, TRAIN_SHARE) for bundle in layout.train_bundles]
    ranks = TrainGroup(
        config,
        strategies=[option["scheduling_strategy"] for option in options],
        slot_share=TRAIN_SHARE,
        device=layout.device,
        run_dir=config.run_dir,
        environment=actor_env(),
        look=watch.check,
        notify=watch.notify,
    )
    parts.callback(ranks.stop)
    watch.follow_all("train rank", ranks.ranks)
    return ranks
