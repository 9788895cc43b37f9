"""Leaves of a trajectory tree to training samples.

Invariant: every sampled token that is kept is trained in exactly one sample; nothing here changes the tree, so that
collecting can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.sample import NOT_SAMPLED, Sample, Status
from miles_lite.session.dialects.typed_json import Count, Struct
from miles_lite.session.engine.experts import path_experts
from miles_lite.session.engine.sampling import inexact
from miles_lite.session.history import linear
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn, versions_per_token
from miles_lite.session.samples.sample_hooks import SampleHook, load_sample_hook
from miles_lite.session.samples.timelines import Append, Merging, Timelines, merge
from miles_lite.tito.chat_messages import text_of


class Collecting(Struct):
    """The body of POST /sessions/ID/samples; `max_seq_len` bounds the tokens of each sample."""

    max_seq_len: Count | None = None


SYSTEM_LINE = 200
"""Characters of a system prompt's first line that a sample's metadata keeps."""

_STATUS = {"length": Status.TRUNCATED, "abort": Status.ABORTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run's sessions become samples. `linear`: only the end of each agent's line is kept. `mask_inexact`: turns
    whose logprobs are not those of logits / temperature alone are not trained.

    `picker` chooses among the samples of all leaves in place of `unsuperseded`; `postprocessor` has the last word.
    """

    linear: bool = False
    mask_inexact: bool = False
    merging: Merging = field(default_factory=Merging)
    picker: SampleHook | None = None
    postprocessor: SampleHook | None = None

    @classmethod
    def of(cls, options: SessionOptions, append: Append) -> Plan:
        """`append` is for merges at the level `text`. Raises UserError for hooks that do not exist."""
        return cls(
            linear=options.use_session_server == "v1",
            mask_inexact=options.session_logprob_inexact == "mask",
            merging=Merging(
                level=options.timeline_compare_level,
                ignore_tools=options.timeline_ignore_tools,
                fix_drift=options.fix_retokenization_drift,
                append=append,
            ),
            picker=load_sample_hook(options.session_sample_picker_path, flag="--session-sample-picker-path"),
            postprocessor=load_sample_hook(
                options.session_sample_postprocessor_path, flag="--session-sample-postprocessor-path"
            ),
        )

    def kept(self, tree: Tree) -> list[Turn]:
        """The leaves that become samples where no picker chooses."""
        return linear.line_ends(tree) if self.linear else unsuperseded(tree)


@dataclass(frozen=True, slots=True)
class _Candidate:
    leaf: Turn
    path: list[Turn]
    sample: Sample

    @property
    def ended(self) -> bool:
        """Whether the model ended its last turn itself, or the sample is cut elsewhere."""
        return self.leaf.output.finish_reason not in _STATUS or len(self.sample) < self.leaf.end


def collect(
    tree: Tree, plan: Plan | None = None, *, max_seq_len: int | None = None, metadata: JsonMapping | None = None
) -> list[Sample]:
    """One validated sample per leaf that is kept, earliest first, of at most `max_seq_len` tokens.

    A turn that several leaves share is trained with the earliest. `metadata` is the session's, for hooks, and goes into
    every sample. Greedy turns (temperature 0) have no policy gradient and are not trained. Raises ApiError 422 when a
    hook fails.
    """
    plan, metadata = plan or Plan(), metadata or {}
    candidates = _candidates(tree, plan, max_seq_len)
    samples = [candidate.sample for candidate in candidates]
    if plan.picker:
        samples = plan.picker.pick(samples, metadata)
    chosen = {id(sample) for sample in samples}
    _train_once([candidate for candidate in candidates if id(candidate.sample) in chosen])
    for sample in samples:
        sample.metadata |= metadata
    if plan.postprocessor:
        return plan.postprocessor.validate(plan.postprocessor(samples, metadata))
    return [sample.validate(f"leaf {sample.metadata['leaf']}") for sample in samples]


def _candidates(tree: Tree, plan: Plan, limit: int | None) -> list[_Candidate]:
    """A sample of each leaf that may be kept, with what is to be said of it."""
    timelines = Timelines(tree.turns) if plan.linear else merge(tree, plan.merging)
    kept = {leaf.number for leaf in plan.kept(tree)}
    leaves = [leaf for leaf in timelines.leaves() if plan.picker or leaf.number in kept]
    candidates = _distinct([made for leaf in leaves if (made := _candidate(leaf, timelines, limit))])
    for candidate in candidates:
        _flag_inexact(candidate, mask=plan.mask_inexact)
        if candidate.leaf.number not in kept:
            candidate.sample.metadata["superseded"] = True
    _flag_continued(candidates, tree)
    return candidates


def unsuperseded(tree: Tree) -> list[Turn]:
    """The leaves, without those whose request was provably sent again.

    Requests that are alike and say nothing of the kind are independent: each of their answers stays.
    """
    superseded = tree.superseded()
    return [leaf for leaf in tree.leaves() if leaf.number not in superseded]


def _candidate(leaf: Turn, timelines: Timelines, limit: int | None) -> _Candidate | None:
    """The leaf's sample within `limit` tokens; None when that leaves no sampled token.

    The turn that crosses the limit is cut where some of its output is within, and left out with all that follow where
    none is: a sample ends with a sampled token.
    """
    path = leaf.path()
    if limit is not None:
        path = list(takewhile(lambda turn: turn.start + len(turn.prompt_ids) < limit, path))
    if not path:
        return None
    sample = _sample(path, leaf)
    sample.metadata |= _merged(path, timelines)
    return _Candidate(leaf, path, sample if limit is None else sample.truncate(limit))


def _merged(path: Sequence[Turn], timelines: Timelines) -> JsonObject:
    """What merging did to a path: `merged` roots, and the [start, end) of outputs sampled in another context."""
    merged = sum(turn.number in timelines.moved for turn in path)
    spans = [[turn.end - turn.output.size, turn.end] for turn in path if turn.number in timelines.off_context]
    return ({"merged": merged} if merged else {}) | ({"merged_offcontext": spans} if spans else {})


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Without those that a cut left with no turn of their own."""
    held: set[int] = set()
    distinct = []
    for candidate in candidates:
        if candidate.path[-1].number not in held:
            distinct.append(candidate)
        held.update(turn.number for turn in candidate.path)
    return distinct


def _train_once(candidates: Sequence[_Candidate]) -> None:
    """Take out of each sample's loss what an earlier one trains."""
    trained: dict[int, int] = {}
    for candidate in candidates:
        for turn, following in zip(candidate.path, [*candidate.path[1:], None], strict=True):
            first, done = turn.start + len(turn.prompt_ids), trained.get(turn.number, 0)
            kept = turn.output.size - (following.drop if following else 0)
            candidate.sample.loss_mask[first : first + min(done, kept)] = 0
            candidate.sample.logprobs[first : first + min(done, kept)] = 0.0
            trained[turn.number] = max(done, kept)


def _flag_inexact(candidate: _Candidate, *, mask: bool) -> None:
    """Say which parameters shaped the logprobs of how many tokens; with `mask`, take these out of the loss."""
    sample, reasons, tokens = candidate.sample, set[str](), 0
    for turn in candidate.path:
        if why := inexact(turn.output.params):
            sampled = slice(turn.start + len(turn.prompt_ids), turn.end)
            reasons.update(why)
            tokens += int(np.count_nonzero(sample.weight_versions[sampled] != NOT_SAMPLED))
            if mask:
                sample.loss_mask[sampled] = 0
                sample.logprobs[sampled] = 0.0
    if reasons:
        sample.metadata["logprob_inexact"] = {"parameters": sorted(reasons), "tokens": tokens}


def _flag_continued(candidates: Sequence[_Candidate], tree: Tree) -> None:
    """Say of samples that end with a turn the model did not finish that their agent spoke again after it."""
    cut = [each for each in candidates if each.path[-1].number == each.leaf.number and not each.ended]
    lasting = {tip.number for tip in linear.line_ends(tree)} if cut else set()
    for candidate in cut:
        if candidate.leaf.number not in lasting:
            candidate.sample.metadata["continued"] = True


def _sample(path: Sequence[Turn], leaf: Turn) -> Sample:
    """The whole path, with every sampled token in the loss."""
    last = path[-1]
    size = last.end
    tokens = np.empty(size, np.int32)
    loss_mask = np.zeros(size, np.uint8)
    logprobs = np.zeros(size, np.float32)
    temperatures = np.ones(size, np.float32)
    versions = np.full(size, NOT_SAMPLED, np.int32)
    for turn, following in zip(path, [*path[1:], None], strict=True):
        output, first = turn.output, turn.start + len(turn.prompt_ids)
        kept = output.size - (following.drop if following else 0)
        tokens[turn.start : first] = turn.prompt_ids
        sampled = slice(first, first + kept)
        tokens[sampled] = output.ids[:kept]
        temperatures[sampled] = output.temperature
        versions[sampled] = versions_per_token(output.spans, output.size)[:kept]
        if output.temperature > 0:
            loss_mask[sampled] = 1
            logprobs[sampled] = output.logprobs[:kept]
    spans: JsonObject = {"turn_spans": [[turn.number, turn.start + len(turn.prompt_ids), turn.end] for turn in path]}
    metadata: JsonObject = {"turns": len(path), "leaf": leaf.number, "finish_reason": last.output.finish_reason}
    metadata |= spans
    metadata |= {"agent": leaf.caller.name} if leaf.caller.name else {}
    metadata |= {"hints": dict(leaf.hints)} if leaf.hints else {}
    metadata |= {"system": line} if (line := _system_line(path)) else {}
    metadata |= {"reanchored": True} if any(turn.root == "reanchored" for turn in path) else {}
    return Sample(
        tokens=tokens,
        loss_mask=loss_mask,
        logprobs=logprobs,
        temperatures=temperatures,
        weight_versions=versions,
        routed_experts=path_experts(path),
        status=_STATUS.get(last.output.finish_reason, Status.COMPLETED),
        metadata=metadata,
    )


def _system_line(path: Sequence[Turn]) -> str:
    """The first line of the path's system prompt that says something."""
    first = path[0].added[0]
    text = text_of(first.get("content")) if first["role"] in ("system", "developer") else ""
    return next((line.strip()[:SYSTEM_LINE] for line in text.splitlines() if line.strip()), "")
