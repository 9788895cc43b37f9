"""Leaves of a trajectory tree to training samples.

Invariant: every sampled token that is kept is trained in exactly one sample; nothing here changes the tree, so that
collecting can be repeated.
"""

from __future__ import annotations

import numpy as np

from miles_lite.sample import NOT_SAMPLED, Sample, Status
from miles_lite.session.tree import Tree, Turn, versions_per_token

_STATUS = {"length": Status.TRUNCATED, "abort": Status.ABORTED}


def collect(tree: Tree, *, max_seq_len: int | None = None) -> list[Sample]:
    """One validated sample per leaf that is not a superseded retry, earliest first, cut to `max_seq_len` tokens.

    A turn that several leaves share is trained with the earliest. A sample is left out when the cut leaves no sampled
    token. Greedy turns (temperature 0) have no policy gradient and are not trained.
    """
    samples: list[Sample] = []
    trained: set[int] = set()
    for leaf in unsuperseded(tree):
        sample = _sample(leaf, trained)
        trained.update(turn.number for turn in leaf.path())
        if max_seq_len is not None:
            sample = sample.truncate(max_seq_len)
        if sample.response_length:
            samples.append(sample.validate(f"turn {leaf.number}"))
    return samples


def unsuperseded(tree: Tree) -> list[Turn]:
    """The leaves, without those whose request was sent again, at the same place, after they had finished.

    Siblings that overlap in time are parallel agents, and stay.
    """
    latest: dict[tuple[int, bytes], float] = {}
    for turn in tree.turns:
        latest[_request(turn)] = max(latest.get(_request(turn), turn.output.started), turn.output.started)
    return [leaf for leaf in tree.leaves() if latest[_request(leaf)] <= leaf.output.finished]


def _request(turn: Turn) -> tuple[int, bytes]:
    return (turn.parent.number if turn.parent else -1, turn.request)


def _sample(leaf: Turn, trained: set[int]) -> Sample:
    path = leaf.path()
    size = leaf.end
    tokens = np.empty(size, np.int32)
    loss_mask = np.zeros(size, np.uint8)
    logprobs = np.zeros(size, np.float32)
    temperatures = np.ones(size, np.float32)
    versions = np.full(size, NOT_SAMPLED, np.int32)
    for turn, following in zip(path, [*path[1:], None], strict=True):
        output, first = turn.output, turn.start + len(turn.prompt_ids)
        kept = len(output.ids) - (following.drop if following else 0)
        tokens[turn.start : first] = turn.prompt_ids
        sampled = slice(first, first + kept)
        tokens[sampled] = output.ids[:kept]
        temperatures[sampled] = output.temperature
        versions[sampled] = versions_per_token(output.spans, len(output.ids))[:kept]
        if turn.number not in trained and output.temperature > 0:
            loss_mask[sampled] = 1
            logprobs[sampled] = output.logprobs[:kept]
    return Sample(
        tokens=tokens,
        loss_mask=loss_mask,
        logprobs=logprobs,
        temperatures=temperatures,
        weight_versions=versions,
        status=_STATUS.get(leaf.output.finish_reason, Status.COMPLETED),
        metadata={"turns": len(path), "leaf": leaf.number, "finish_reason": leaf.output.finish_reason},
    )
