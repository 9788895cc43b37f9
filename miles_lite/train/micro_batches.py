"""Which samples are computed together: families of samples that share prefixes, cut to a budget and dealt to ranks.

A family is what the rollouts of a prompt fan out to. Its members are sorted by the prefixes that they are known to
share, so that a family which is too large is split by its branches. What is counted are tokens of the tree: a prefix
once in each micro-batch. Only records are looked at.

Invariant: every sample is in one micro-batch; none has more tokens than the budget unless it holds one sample alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby

from miles_lite.config.training import Algorithm
from miles_lite.sample import SampleRecord
from miles_lite.train.flops import Flops
from miles_lite.train.partition import karmarkar_karp

SLACK = 1.25
"""A family is split among ranks when it is more than this times what a rank has to do: each part repeats its prefix."""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A sample by its prefixes' digests, which sort it among its family, and its index."""

    path: tuple[int, ...]
    index: int
    record: SampleRecord = field(compare=False)


@dataclass(slots=True)
class Bundle:
    """Samples that are computed together, and what of them is computed: `tokens`, and `pairs` of attention."""

    members: list[Member] = field(default_factory=list)
    tokens: int = 0
    pairs: int = 0
    known: set[int] = field(default_factory=set)

    def shared(self, member: Member, beside: Set[int] = frozenset()) -> int:
        """Tokens of a further sample that are there already, or where digests `beside` are."""
        there = (each.length for each in member.record.prefixes if each.digest in self.known or each.digest in beside)
        return max(there, default=0)

    def add(self, members: Iterable[Member]) -> Bundle:
        for member in members:
            shared, length = self.shared(member), member.record.length
            self.tokens += length - shared
            self.pairs += (length * (length + 1) - shared * (shared + 1)) // 2
            self.known.update(member.path)
            self.members.append(member)
        return self

    def more(self, part: Bundle) -> int:
        """Tokens that adding its members would add."""
        if self.known.isdisjoint(part.known):
            return part.tokens
        tokens, beside = 0, set[int]()
        for member in part.members:
            tokens += member.record.length - self.shared(member, beside)
            beside.update(member.path)
        return tokens


def micro_batches(
    records: Sequence[SampleRecord], families: Sequence[int], *, ranks: int, options: Algorithm, flops: Flops
) -> list[list[list[int]]]:
    """Per rank, its micro-batches of indices into `records`; `families` are those of the samples."""
    limit = Limit(options)
    parts = [part for family in _families(records, families, options) for part in _split(family, limit)]
    total = sum(part.tokens for part in parts)
    share = Limit(options, most=int(SLACK * total / ranks) + 1)
    parts = [smaller for part in parts for smaller in _split(part.members, share)]
    dealt = karmarkar_karp([flops.of(part.tokens, part.pairs) for part in parts], ranks)
    return [
        [[member.index for member in bundle.members] for bundle in _join([parts[number] for number in own], limit)]
        for own in dealt
    ]


@dataclass(frozen=True, slots=True)
class Limit:
    """What a micro-batch holds: tokens with --use-dynamic-batch-size, and never more than `most`; else samples."""

    options: Algorithm
    most: int | None = None

    def allows(self, bundle: Bundle, part: Bundle) -> bool:
        """Whether the bundle may hold the part, too; one sample it may in any case."""
        count = len(bundle.members) + len(part.members)
        if count <= 1:
            return True
        if not self.options.use_dynamic_batch_size:
            return count <= self.options.micro_batch_size
        bounds = [bound for bound in (self.options.max_tokens_per_gpu, self.most) if bound is not None]
        if any(bundle.tokens > bound for bound in bounds):
            return False
        tokens = bundle.tokens + bundle.more(part)
        return all(tokens <= bound for bound in bounds)


def _families(records: Sequence[SampleRecord], families: Sequence[int], options: Algorithm) -> list[list[Member]]:
    """The members of each, sorted; each sample by itself where nothing is to be shared."""
    share = not options.disable_tree_training
    members = [
        Member(tuple(prefix.digest for prefix in record.prefixes) if share else (), index, record)
        for index, record in enumerate(records)
    ]
    key = {member.index: families[member.index] if share else member.index for member in members}
    ordered = sorted(members, key=lambda member: (key[member.index], member))
    return [list(family) for _, family in groupby(ordered, key=lambda member: key[member.index])]


def _split(members: Sequence[Member], limit: Limit) -> list[Bundle]:
    """Neighbours together, as many as may be."""
    bundles: list[Bundle] = []
    for member in members:
        alone = Bundle().add([member])
        if bundles and limit.allows(bundles[-1], alone):
            bundles[-1].add([member])
        else:
            bundles.append(alone)
    return bundles


def _join(parts: Sequence[Bundle], limit: Limit) -> list[Bundle]:
    """First-fit, the largest first."""
    bundles: list[Bundle] = []
    for part in sorted(parts, key=lambda part: -part.tokens):
        found = next((bundle for bundle in bundles if limit.allows(bundle, part)), None)
        if found is None:
            found = Bundle()
            bundles.append(found)
        found.add(part.members)
    return bundles
