"""The only units that cross room boundaries: `Sample`, aligned arrays, and the records `Rollout` and `Group`.

Invariant: every per-token array of a sample has the length of `tokens`; `loss_mask` is 1 exactly on tokens an engine
sampled and that are kept; `routed_experts`, where present, has one row less than `tokens`. A sample is validated where
it is born (collect) and where it is consumed (packing), and cut in one place only (`Sample.truncate`). A record holds
no array: it says what is known of samples, and where they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from miles_lite.errors import Where

T_co = TypeVar("T_co", covariant=True)
NOT_SAMPLED = -1
"""`weight_versions` of a token that no engine sampled."""

ALIGNED = {"tokens": np.int32, "loss_mask": np.uint8, "logprobs": np.float32, "temperatures": np.float32}
ALIGNED |= {"weight_versions": np.int32}
"""The arrays of a sample that have a value for each token, and of which type."""


class Status(StrEnum):
    """How a rollout or a sample ended."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a rollout broke (`errors.FAILURES`), and why, in words for people."""

    where: Where
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(slots=True)
class Sample:
    """One training sequence: a path through a session's trajectory tree.

    Shapes (T = number of tokens):
        tokens           int32   [T]  prompt and everything after it
        loss_mask        uint8   [T]  1 where an engine sampled the token and it is trained
        logprobs         float32 [T]  natural log, of the distribution the token was sampled from; 0 where mask is 0
        temperatures     float32 [T]  the sampling temperature of the token's turn; 1 where not sampled
        weight_versions  int32   [T]  the weight version that sampled the token; NOT_SAMPLED elsewhere
        routed_experts   uint8|uint16|int32 [T-1, layers, topk] or None; row t routed token t
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    temperatures: np.ndarray
    weight_versions: np.ndarray
    routed_experts: np.ndarray | None = None
    status: Status = Status.COMPLETED
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first sampled one; all of them when none was sampled."""
        sampled = np.flatnonzero(self.weight_versions != NOT_SAMPLED)
        return int(sampled[0]) if len(sampled) else len(self.tokens)

    @property
    def trained_tokens(self) -> int:
        """Effective response length: the sum of the loss mask."""
        return int(self.loss_mask.sum())

    @property
    def off_context(self) -> np.ndarray:
        """bool [T]: tokens sampled behind other ids than stand before them here (`merged_offcontext` in the metadata).

        The engine's logprob of such a token says nothing about this sequence: it takes part in no importance ratio.
        """
        marked = np.zeros(len(self.tokens), bool)
        for start, end in self.metadata.get("merged_offcontext", ()):
            marked[start:end] = True
        return marked

    @property
    def turns(self) -> np.ndarray:
        """int32 [T]: the number of the session's turn that sampled the token; NOT_SAMPLED elsewhere.

        Where nobody says (`turn_spans` in the metadata), each run of sampled tokens is a turn.
        """
        sampled = self.weight_versions != NOT_SAMPLED
        turns = np.full(len(self.tokens), NOT_SAMPLED, np.int32)
        if "turn_spans" in self.metadata:
            for number, start, end in self.metadata["turn_spans"]:
                turns[start:end] = number
            return turns
        begins = sampled & ~np.concatenate([[False], sampled[:-1]])
        turns[sampled] = (np.cumsum(begins) - 1)[sampled]
        return turns

    @property
    def observation_mask(self) -> np.ndarray:
        """bool [T]: what its agent was told between its turns: no engine sampled it, and trained tokens come before it.

        Tokens of `imitate` in the metadata, a list of [start, end), instead, where a hook put it there.
        """
        if "imitate" not in self.metadata:
            return np.asarray((self.weight_versions == NOT_SAMPLED) & (np.cumsum(self.loss_mask) > 0))
        chosen = np.zeros(len(self.tokens), bool)
        for start, end in self.metadata["imitate"]:
            chosen[max(1, start) : end] = True
        return chosen

    def record(self) -> SampleRecord:
        """What is known of it without its arrays."""
        versions = np.unique(self.weight_versions)
        trained, counts = np.unique(self.weight_versions[self.loss_mask == 1], return_counts=True)
        turns = self.turns
        return SampleRecord(
            length=len(self.tokens),
            prompt_length=self.prompt_length,
            trained_tokens=self.trained_tokens,
            weight_versions=tuple(int(version) for version in versions if version != NOT_SAMPLED),
            trained_by_version=tuple(zip(trained.tolist(), counts.tolist(), strict=True)),
            longest_turn=int(np.bincount(turns[turns != NOT_SAMPLED], minlength=1).max()),
            status=self.status,
            metadata=self.metadata,
            prefixes=tuple(self._prefixes()),
        )

    def _prefixes(self) -> Iterator[Prefix]:
        """Up to where each stretch of sampled tokens begins, and where it ends: where sessions branch."""
        digest = hashlib.blake2b(digest_size=8)
        sampled = self.weight_versions != NOT_SAMPLED
        start = 0
        for end in sorted({*(np.flatnonzero(np.diff(sampled)) + 1).tolist(), len(self.tokens)}):
            digest.update(self.tokens[start:end].tobytes())
            if self.routed_experts is not None:
                digest.update(self.routed_experts[start:end].tobytes())
            yield Prefix(end, int.from_bytes(digest.digest(), "little"))
            start = end

    def truncate(self, length: int) -> Sample:
        """The first `length` tokens of everything aligned to tokens; marked TRUNCATED when anything was cut.

        The arrays are views of this sample's. Raises ValueError for a negative length.
        """
        if length < 0:
            raise ValueError(f"Sample.truncate: length must be >= 0, got {length}")
        if length >= len(self.tokens):
            return self
        cut = {name: getattr(self, name)[:length] for name in ALIGNED}
        experts = None if self.routed_experts is None else self.routed_experts[: max(0, length - 1)]
        return replace(self, **cut, routed_experts=experts, status=Status.TRUNCATED)

    def validate(self, where: str = "sample") -> Sample:
        """Check shapes, dtypes and invariants; returns self. Raises ValueError naming `where` and the field."""
        size = len(self.tokens)
        for name, dtype in ALIGNED.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (size,):
                raise ValueError(
                    f"{where}: {name} is {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}[{size}] "
                    "(aligned to tokens)"
                )
        if np.any(self.loss_mask > 1):
            raise ValueError(f"{where}: loss_mask holds values other than 0 and 1")
        trained = self.loss_mask == 1
        if np.any(self.weight_versions[trained] == NOT_SAMPLED):
            raise ValueError(f"{where}: loss_mask is 1 on a token that no engine sampled")
        if not np.all(np.isfinite(self.logprobs)) or np.any(self.logprobs > 1e-4):
            raise ValueError(f"{where}: logprobs must be finite and <= 0")
        if np.any(self.logprobs[~trained] != 0.0):
            raise ValueError(f"{where}: a token outside the loss mask carries a logprob")
        if np.any(self.temperatures[trained] <= 0.0):
            raise ValueError(f"{where}: a trained token has temperature <= 0: greedy tokens have no policy gradient")
        experts = self.routed_experts
        if experts is not None and (experts.ndim != 3 or experts.dtype not in (np.uint8, np.uint16, np.int32)):
            raise ValueError(
                f"{where}: routed_experts is {experts.dtype}{list(experts.shape)}, expected "
                "uint8, uint16 or int32 [tokens - 1, layers, topk]"
            )
        if self.routed_experts is not None and len(self.routed_experts) != max(0, size - 1):
            raise ValueError(
                f"{where}: routed_experts has {len(self.routed_experts)} rows for {size} tokens, expected tokens - 1"
            )
        return self


class Prefix(NamedTuple):
    """The first `length` tokens of a sample: `digest` is equal where they are, routed experts included."""

    length: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """A sample without its arrays; lengths in tokens.

    weight_versions  those that sampled its tokens, ascending
    trained_by_version  of those, and how many trained tokens each sampled
    longest_turn     tokens that the longest of its turns sampled
    prefixes         up to the begin and the end of each turn, the whole sample last: what others may share with it
    """

    length: int
    prompt_length: int
    trained_tokens: int
    weight_versions: tuple[int, ...]
    status: Status
    metadata: dict[str, Any]
    prefixes: tuple[Prefix, ...] = ()
    trained_by_version: tuple[tuple[int, int], ...] = ()
    longest_turn: int = 0

    @property
    def ends_cut(self) -> bool:
        """Whether it is truncated, and its agent did not go on beside it (`continued` in the metadata)."""
        return self.status is Status.TRUNCATED and not self.metadata.get("continued")


class Fetchable(Protocol[T_co]):
    """What belongs to a rollout, wherever it lies: samples in the order of its records, or a transcript."""

    def fetch(self) -> T_co:
        """Waits for what lies on another node."""


Samples = Fetchable[Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class LocalSamples:
    """Samples that lie where they are known."""

    samples: Sequence[Sample]

    def fetch(self) -> Sequence[Sample]:
        return self.samples


@dataclass(slots=True, kw_only=True)
class Spans:
    """Where the time of a rollout went, in seconds; None where nobody knows.

    queue   until an agent worker took it; reward: judging it
    model   the agent's requests; tool: what it ran; both as the agent reports them, else as its session saw them
    prefill, tools  of `model`, until engines had the first tokens; of what it ran by name, as its session saw it
    """

    queue: float | None = None
    model: float | None = None
    prefill: float | None = None
    tool: float | None = None
    tools: dict[str, float] = field(default_factory=dict)
    reward: float | None = None


@dataclass(slots=True)
class Rollout:
    """The record of one execution of an agent on one prompt, which may fan out to several samples (sub-agents).

    index                    its number in the run; group_index: that of its prompt's group
    samples                  a record of each; `stored`: where they lie, None when there are none
    transcript               its session's turns as JSON, and its prompt, until they are kept or not; None likewise
    reward                   None where nobody gave one, or it failed
    failure                  where and why it broke; None where it came to an end of its own
    metadata                 what the agent function returned
    teacher                  the name of who teaches its prompt (--opd-teacher-key); "" where nobody said
    started_at, finished_at  seconds since the epoch; 0 before
    ended_version            the engines' weight version when it ended; None where nobody says
    """

    index: int
    group_index: int
    samples: list[SampleRecord] = field(default_factory=list)
    stored: Samples | None = None
    transcript: Fetchable[tuple[bytes, dict[str, Any]]] | None = None
    reward: float | None = None
    status: Status = Status.PENDING
    failure: Failure | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    spans: Spans = field(default_factory=Spans)
    teacher: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    ended_version: int | None = None

    @property
    def trained_tokens(self) -> int:
        """The sum of the loss masks of all its samples."""
        return sum(sample.trained_tokens for sample in self.samples)

    @property
    def trainable(self) -> bool:
        """Whether it was rewarded and some of its tokens were sampled."""
        return self.reward is not None and self.trained_tokens > 0

    def fail(self, where: Where, why: str) -> None:
        """It broke: its status says so, and it has no reward, whatever was said before."""
        self.status = Status.ABORTED if where is Where.TIMEOUT else Status.FAILED
        self.failure, self.reward = Failure(where, why), None

    def fetch(self) -> Sequence[Sample]:
        """Its samples with their arrays: tokens, logprobs, experts. See `Samples.fetch`."""
        return [] if self.stored is None else self.stored.fetch()


@dataclass(slots=True)
class Group:
    """All rollouts of one prompt; statistics (baseline, zero-std) are over those that were judged.

    `prompt` holds `row`, the prompt's line in its file, and in training its `label`.
    """

    index: int
    prompt: dict[str, Any]
    rollouts: list[Rollout] = field(default_factory=list)

    @property
    def judged(self) -> list[Rollout]:
        """Those that came to an end of their own: all but the failed."""
        return [rollout for rollout in self.rollouts if rollout.failure is None]

    @property
    def rewards(self) -> list[float | None]:
        """Of those that were judged."""
        return [rollout.reward for rollout in self.judged]


@dataclass(frozen=True, slots=True)
class Keep:
    """A filter's verdict; a dropped group is counted under `reason` and replaced by a new prompt."""

    keep: bool
    reason: str | None = None
