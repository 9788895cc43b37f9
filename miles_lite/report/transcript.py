"""A kept trajectory as people read it: its messages, and of what engines sampled every token with its logprob, whether
it is trained, the weight version, and what training made of it.

Invariant: it is bounded, whatever was recorded, and says what it leaves out. Tokens are spelled by the model's own
tokenizer, where its folder is still there; without it a sampled message is its text alone.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from tokenizers import Tokenizer

from miles_lite.report import rollout_table
from miles_lite.report.parting import Part, damaged
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import Row, trajectory_path
from miles_lite.report.turn_tree import Turn, tree
from miles_lite.report.visible import first, visible
from miles_lite.tito.byte_level import ByteTokens
from miles_lite.traces import atraj
from miles_lite.traces.atraj import ADVANTAGES, TRAINER_LOGPROBS, Step, Trajectory

MOST_CHARACTERS, MOST_TEXT, MOST_TOKENS, MOST_MESSAGES = 4000, 24_000, 1000, 60
"""Of a message; of what a trajectory's messages are together; of a trajectory; of a trajectory."""
EXAMPLES = 2
"""Of the failures at one boundary."""
LIKELY = (0.9, 0.5, 0.1, 0.01, 0.001)
"""A token is in the place of the first of these that its probability reaches, or in the last."""
VERSIONS = 4
"""Colours of weight versions, which follow one another in turn."""
CREDIT = (-1.0, -1e-6, 1e-6, 1.0)
"""A token is in the place that its advantage has among these, from 0 to 4: 2 is none."""
APART = (0.01, 0.05, 0.2, 1.0)
"""Nats: the place of the gap between trainer and engine among these, likewise."""
PLACES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "probability": ("probability", (*(f"≥ {least:g}" for least in LIKELY), "less")),
    "version": (f"weight version, modulo {VERSIONS}", tuple(map(str, range(VERSIONS)))),
    "mask": ("mask", ("not trained", "trained")),
    "advantage": ("advantage", ("below -1", "below 0", "0", "above 0", "≥ 1")),
    "gap": ("trainer against engine, nats", (f"below {APART[0]:g}", *(f"≥ {least:g}" for least in APART))),
}
"""By what tokens are coloured: what that is, and the names of its places, from 0."""

Spell = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Token:
    """One as it is spelled. Where it was sampled, `likely`: its place in LIKELY, `version`: that of its weights; where
    training told them, its `advantage` and the `trainer`'s logprob; `credit`: its place in CREDIT, `gap`: in APART.
    `only`: the rollout that it is compared with lacks it."""

    text: str
    id: int
    logprob: float | None = None
    likely: int = 0
    trained: bool = False
    version: int | None = None
    advantage: float | None = None
    trainer: float | None = None
    only: bool = False

    @property
    def credit(self) -> int | None:
        return None if self.advantage is None else bisect(CREDIT, self.advantage)

    @property
    def gap(self) -> int | None:
        if self.trainer is None or self.logprob is None:
            return None
        return bisect(APART, abs(self.trainer - self.logprob))


@dataclass(frozen=True, slots=True)
class Message:
    """One of a trajectory; `tokens` where it was sampled and they can be spelled, else `text`."""

    role: str
    caption: str
    text: str
    tokens: Sequence[Token]
    turn: int | None = None
    """Where it is the first one of a turn that one can go to."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One trajectory, and why it is shown."""

    why: str
    row: Row
    messages: Sequence[Message]
    left_out: int
    """Messages."""
    turns: Sequence[Turn] = ()
    """Of one that is shown whole."""


def transcripts(record: Record) -> Iterator[Transcript]:
    """What a page shows of those that were kept: the last failures of each boundary, the best and the worst of the last
    step, and one whose group carries no gradient. Raises UserError for a damaged file."""
    spell = speller(record.options)
    for why, row in _chosen(record):
        path = trajectory_path(record.folder, row["step"], row["rollout"])
        with damaged(str(path)):
            shown = transcript(atraj.read(path), row, why=why, spell=spell)
        yield shown


def transcript(
    trajectory: Trajectory, row: Row, *, why: str, spell: Spell | None, most: int | None = MOST_TOKENS
) -> Transcript:
    """Of one trajectory. `most` tokens are spelled, None: all, and messages are whole. Raises what `damaged` knows."""
    steps, left = trajectory.steps, most if most is not None else sum(len(step.ids) for step in trajectory.steps)
    shown, room = steps if most is None else steps[-MOST_MESSAGES:], MOST_TEXT
    messages, begun = [], set[int]()
    for step in shown:
        tokens = list(_tokens(step, spell, left)) if step.sampled and spell is not None else []
        left -= len(tokens)
        text = "" if tokens else step.content if most is None else first(step.content, min(MOST_CHARACTERS, room))
        room = max(0, room - len(text))
        begins = most is None and step.turn not in begun
        begun.add(step.turn)
        said = visible(text)
        messages.append(Message(step.role, _caption(step, len(tokens)), said, tokens, step.turn if begins else None))
    turns = list(tree(trajectory)) if most is None else []
    return Transcript(why, row, messages, len(steps) - len(shown), turns)


def compared(part: Part, spell: Spell | None) -> Message:
    """What a turn was told or has sampled, every token of it, with those that the other rollout lacks."""
    own = {at for start, end in part.only for at in range(start, end)}
    says, tokens = f"turn {part.turn}, {len(part.ids):,} tokens, {len(own):,} its own", list[Token]()
    if spell is not None and part.sampled:
        tokens = list(_tokens(part.steps[0], spell, len(part.ids)))
    elif spell is not None:
        tokens = [Token(visible(spell(token)), token) for token in part.ids]
    tokens = [replace(token, only=at in own) for at, token in enumerate(tokens)]
    return Message(part.role, says, visible(part.text), tokens)


def speller(options: Mapping[str, object]) -> Spell | None:
    """The text of a token of the run's model; None where its tokenizer is not there, or none that can be read."""
    path = Path(str(options.get("hf_checkpoint", ""))) / "tokenizer.json"
    return _speller(path) if path.is_file() else None


@lru_cache(maxsize=2)
def _speller(path: Path) -> Spell | None:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  tokenizers raises nothing else; what was said can be shown without it
        return None
    by_bytes = ByteTokens.of(tokenizer)
    if by_bytes is not None:
        return lambda token: by_bytes.text([token])
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)


def _chosen(record: Record) -> Iterator[tuple[str, Row]]:
    """Rows of trajectories that are there, and why they are shown."""
    failed, last, flat = _found(record)
    yield from ((f"failed at {where}", row) for where, rows in failed.items() for row in rows)
    if last:
        yield "best of the last step", max(last, key=lambda row: row["reward"])
        yield "worst of the last step", min(last, key=lambda row: row["reward"])
    yield from (("its group carries no gradient", row) for row in flat)


def _found(record: Record) -> tuple[dict[str, list[Row]], list[Row], list[Row]]:
    """Rows that failed, by where, those of the last step that was judged, and one of a group without a gradient; no
    more steps are read than it takes."""
    failed: dict[str, list[Row]] = {where: [] for where, _ in record.tally.boundaries}
    last, flat = list[Row](), list[Row]()
    for kept in _kept(record):
        if last and flat and all(len(rows) >= EXAMPLES for rows in failed.values()):
            break
        for row in reversed(kept):
            if (rows := failed.get(row["where"])) is not None and len(rows) < EXAMPLES:
                rows.append(row)
        judged = [row for row in kept if row["reward"] is not None]
        last = last or judged
        flat = flat or [row for row in judged if row["zero_std"]][-1:]
    return failed, last, flat


def _kept(record: Record) -> Iterator[list[Row]]:
    """The rows of trajectories that are there, step by step, the newest first. Raises UserError."""
    known = {step: list(rows) for step, rows in groupby(record.rollouts, key=itemgetter("step"))}
    for step, there in rollout_table.kept_trajectories(record.folder).items():
        rows = known.get(step) or rollout_table.readable(rollout_table.step_path(record.folder, step)).to_pylist()
        yield [row for row in rows if row["rollout"] in there]


def _tokens(step: Step, spell: Spell, most: int) -> Iterator[Token]:
    """Of a sampled step, `most` of them."""
    spans = [(int(version), start, min(end, most)) for version, start, end in step.data.get("weight_versions", ())]
    versions = {at: version for version, start, end in spans for at in range(max(start, 0), end)}
    sampled = step.data.get("temperature", 1.0) > 0
    nobody = [None] * len(step.ids)
    values = (step.data.get(name, nobody) for name in (ADVANTAGES, TRAINER_LOGPROBS))
    columns = zip(step.ids[:most], step.logprobs, *values, strict=False)
    for at, (token, logprob, advantage, trainer) in enumerate(columns):
        likely = next((place for place, least in enumerate(LIKELY) if logprob >= math.log(least)), len(LIKELY))
        trained = sampled if ADVANTAGES not in step.data else advantage is not None
        credit, other = (None if value is None else float(value) for value in (advantage, trainer))
        yield Token(visible(spell(token)), token, logprob, likely, trained, versions.get(at), credit, other)


def _caption(step: Step, spelled: int) -> str:
    parts = [f"turn {step.turn}", f"{len(step.ids):,} tokens"]
    if step.logprobs:
        parts.append(f"mean logprob {fmean(step.logprobs):.3f}")
        parts.append(f"ended by {step.data.get('finish_reason', '?')}")
    if 0 < spelled < len(step.ids):
        parts.append(f"the first {spelled:,} shown")
    parts += [f"calls {call['name']}({first(call['arguments_json'], 200)})" for call in step.calls]
    return visible(", ".join(parts))
