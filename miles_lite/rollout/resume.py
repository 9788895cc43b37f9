"""What rollouts go on from: prompts, schedule and accounts in a JSON file, the samples of groups that wait in another.

Invariant: what `load` gives goes on as what `save` was given: no prompt is dropped or dealt twice. Rollouts that had
not ended start anew; those that had are kept where the schedule lets groups wait (--max-weight-staleness above 0).
Arrays never pass through the process that saves or loads: it has them written, and read into Ray's store, where it owns
them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_lite.config.rollouts import Data
from miles_lite.errors import UnavailableError, UserError, user_error, writing
from miles_lite.process.drafted import drafted
from miles_lite.rollout.generate import Generator, Members
from miles_lite.rollout.plain_values import plain
from miles_lite.rollout.prompts import Source, open_source
from miles_lite.rollout.stored import Stored
from miles_lite.sample import Group, Rollout, Sample
from miles_lite.stack.aside import aside, parts_aside

STATE = frozenset({"data", "members", "scheduler", "next_rollout_index"})
"""What a file holds."""


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment: `plain` as JSON, and the groups of which a rollout waits to be trained."""

    plain: dict[str, Any]
    waiting: list[Group]


def snapshot(generator: Generator, source: Source, *, next_index: int) -> Snapshot:
    """`next_index`: the number of the next rollout."""
    waiting, members = _waiting(generator)
    state = generator.scheduler.state()
    plain = {
        "data": source.state(),
        "accounts": state["accounts"],
        "scheduler": state,
        "next_rollout_index": next_index,
        "members": {group: {member: rollout.index for member, rollout in of.items()} for group, of in members.items()},
    }
    return Snapshot(plain, waiting)


async def save(folder: str, rollout_id: int, taken: Snapshot) -> None:
    """Write what follows the training of `rollout_id`; samples of earlier checkpoints that are gone go too."""
    path = _path(folder, rollout_id)
    with writing("the rollout state", path), drafted(path) as draft:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(taken.plain))
        if taken.waiting:
            with user_error(f"{_samples(path)} is not written", UnavailableError, kind=UnavailableError):
                await aside(_write, _samples(path), rollout_id, taken.waiting)
    for old in path.parent.glob("*.pt"):
        iteration = int(old.stem.rpartition("_")[2])
        if iteration < rollout_id and not Path(folder, f"iter_{iteration:07d}").is_dir():
            old.unlink()


async def load(folder: str, rollout_id: int, generator: Generator, source: Source) -> int:
    """Let `generator` and `source` go on from `save`; the number of the next rollout. Raises UserError when a file is
    missing or damaged."""
    path, state = _path(folder, rollout_id), _state(folder, rollout_id)
    named: dict[str, dict[str, int]] = state["members"]
    kept = await _kept(folder, _samples(path), [index for of in named.values() for index in of.values()])
    by_index = {rollout.index: rollout for group in kept.values() for rollout in group.rollouts}
    members: Members = {
        int(group): {int(member): by_index[index] for member, index in of.items()}
        for group, of in named.items()
        if int(group) in kept
    }
    for group in kept.values():
        group.rollouts = []
    source.restore(state["data"])
    generator.resume(rollout_id + 1, state["scheduler"], kept, members)
    next_index: int = state["next_rollout_index"]
    return next_index


def check(folder: str, rollout_id: int, data: Data) -> None:
    """Refuse what rollouts cannot go on from, before anything starts. Raises UserError."""
    state = _state(folder, rollout_id)
    open_source(data).restore(state["data"])
    samples = _samples(_path(folder, rollout_id))
    if any(state["members"].values()) and not samples.is_file():
        raise UserError(f"--load {folder}: {samples.name} is missing: the samples that wait to be trained are lost")


def _state(folder: str, rollout_id: int) -> dict[str, Any]:
    path = _path(folder, rollout_id)
    if not path.is_file():
        raise UserError(f"--load {folder}: {path.name} is missing: the rollout state of that iteration is lost")
    with user_error(f"--load {folder}: {path.name} is damaged", OSError, ValueError):
        state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise UserError(f"--load {folder}: {path.name} is damaged: it lacks one of {', '.join(sorted(STATE))}")
    return state


async def _kept(folder: str, path: Path, rollouts: Sequence[int]) -> dict[int, Group]:
    """By index, the groups in the file at `path`, with the samples of those `rollouts`."""
    if not rollouts:
        return {}
    with user_error(f"--load {folder}: {path.name} is not read", UnavailableError, kind=UnavailableError):
        groups, samples = await parts_aside(_read, len(rollouts), folder, path, rollouts)
    by_index = dict(zip(rollouts, samples, strict=True))
    for rollout in (one for group in groups for one in group.rollouts):
        if rollout.samples and rollout.index in by_index:
            rollout.stored = Stored(by_index[rollout.index])
    return {group.index: group for group in groups}


def _write(path: Path, rollout_id: int, groups: list[Group]) -> None:
    """In a process of its own, as `_read`."""
    from miles_lite.rollout import dump  # torch, without which a manager starts 2 s earlier, and 150 MB lighter

    dump.write(path, rollout_id, groups)


def _read(folder: str, path: Path, rollouts: Sequence[int]) -> tuple[list[Group], *tuple[Sequence[Sample], ...]]:
    """The groups in the file at `path`, without samples, and those of each of `rollouts`."""
    from miles_lite.rollout import dump

    with user_error(f"--load {folder}: {path.name} is damaged", *dump.DAMAGED):
        groups = dump.parse(path)
    samples: dict[int, Sequence[Sample]] = {}
    for rollout in (one for group in groups for one in group.rollouts):
        samples[rollout.index], rollout.stored = rollout.fetch(), None
    return groups, *(samples.get(index, ()) for index in rollouts)


def _waiting(generator: Generator) -> tuple[list[Group], Members]:
    """Groups of which a rollout has ended that is not trained, and which member each is."""
    if not generator.scheduler.schedule.max_staleness:
        return [], {}
    members = {group: of for group, of in generator.members.items() if of}
    for batch in generator.training.values():
        members |= {group.index: dict(enumerate(group.rollouts)) for group in batch}
    groups = [*generator.held.values(), *(group for batch in generator.training.values() for group in batch)]
    waiting = [
        Group(group.index, plain(group.prompt), [_without_users_types(one) for one in ended.values()])
        for group in groups
        if (ended := members.get(group.index)) is not None
    ]
    return waiting, members


def _without_users_types(rollout: Rollout) -> Rollout:
    """What is kept of it, for a process that knows no user's modules."""
    return dataclasses.replace(rollout, transcript=None, metadata=plain(rollout.metadata))


def _path(folder: str, rollout_id: int) -> Path:
    return Path(folder) / "rollout" / f"global_dataset_state_dict_{rollout_id}.json"


def _samples(path: Path) -> Path:
    return path.with_suffix(".pt")
