"""Trajectory files to datasets, straight from the stored ids: nothing is tokenised again.

Invariant: one file is in memory at a time; what is kept of it is a few hashes (and for preference pairs its reward and
a place in a temporary file). The same files and options give the same rows in the same order, and rollouts of one
prompt lie in one split.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import orjson

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonObject
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Arrays, Step, Trajectory

Row = JsonObject
PARQUET_ROWS = 512
"""Rows of a row group."""
WRITE_BYTES = 1 << 18
"""Bytes that are written to a file at once."""
_PER_TOKEN = ("input_ids", "loss_mask", "logprobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which trajectories count. A reward bound excludes those without a reward."""

    min_reward: float | None = None
    max_reward: float | None = None
    max_tokens: int | None = None
    dedup: bool = True

    def refusal(self, trajectory: Trajectory, tokens: int) -> str | None:
        """Why not; None when it counts. `tokens` is the length of the longest path."""
        reward = trajectory.reward
        if self.min_reward is not None and (reward is None or reward < self.min_reward):
            return "below_min_reward"
        if self.max_reward is not None and (reward is None or reward > self.max_reward):
            return "above_max_reward"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return "too_long"
        return None


@dataclass(slots=True)
class Trace:
    """A trajectory that counts: where it lies, its paths and their sequences, and the hash of its prompt's ids."""

    source: str
    trajectory: Trajectory
    paths: list[list[Step]]
    sequences: list[Arrays]
    prompt: bytes


class Writer(Protocol):
    """Takes traces of one split, one after another."""

    rows: int

    def add(self, trace: Trace) -> None: ...


def files(folder: Path) -> list[Path]:
    """Every .atraj file below `folder`, in the order of their names. Raises UserError when there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder that holds the {atraj.SUFFIX} files")
    found = sorted(folder.rglob(f"*{atraj.SUFFIX}"))
    if not found:
        raise UserError(f"{folder}: no {atraj.SUFFIX} files there; --trajectory-dir of train or agent writes them")
    return found


def traces(found: Sequence[Path], folder: Path, filters: Filters, counts: Counter[str]) -> Iterator[Trace]:
    """The trajectories that count of the files `found` below `folder`; `counts` says what became of each. Raises
    UserError for a broken one."""
    seen: set[bytes] = set()
    for path in found:
        trajectory = atraj.read(path)
        counts["read"] += 1
        counts["steps"] += len(trajectory.data["steps"])
        paths = trajectory.paths()
        sequences = list(atraj.sequences(paths, where=str(path)))
        if not sequences:
            counts["empty"] += 1
            continue
        if reason := filters.refusal(trajectory, max(len(ids) for ids, _, _ in sequences)):
            counts[reason] += 1
            continue
        if filters.dedup:
            key = _hash([ids for ids, _, _ in sequences])
            if key in seen:
                counts["duplicates"] += 1
                continue
            seen.add(key)
        counts["kept"] += 1
        prompt = sequences[0][0][: prompt_length(paths[0])]
        yield Trace(str(path.relative_to(folder)), trajectory, paths, sequences, _hash(prompt))


def prompt_length(path: Sequence[Step]) -> int:
    """How many ids come before the first sampled one."""
    return sum(len(step.ids) for step in path[: _first_sampled(path)])


def split_of(prompt: bytes, splits: Mapping[str, float]) -> str | None:
    """The split that a prompt belongs to; None when the shares leave it out."""
    place = int.from_bytes(prompt[:8], "big") / 2**64
    for name, share in splits.items():
        if place < share:
            return name
        place -= share
    return None


@dataclass(slots=True)
class JsonLines:
    """A JSONL file."""

    file: IO[bytes]
    rows: int = 0

    def write(self, row: Row) -> None:
        self.file.write(_json(row) + b"\n")
        self.rows += 1


class Sft(JsonLines):
    """One row per path: messages for people, ids and loss mask for training."""

    def add(self, trace: Trace) -> None:
        for number, (ids, mask, _) in enumerate(trace.sequences):
            messages = atraj.messages(trace.paths[number])
            self.write({"messages": messages, "input_ids": ids, "loss_mask": mask, **_about(trace)})


@dataclass(slots=True)
class Rlvr(JsonLines):
    """One row per prompt, for --prompt-data: what the rollout was given, where the file says so, else its messages."""

    _seen: set[bytes] = field(default_factory=set)

    def add(self, trace: Trace) -> None:
        if trace.prompt in self._seen:
            return
        self._seen.add(trace.prompt)
        stored = trace.trajectory.data.get("metadata", {}).get("prompt")
        prompt = stored if isinstance(stored, dict) else {}
        sent = atraj.messages(trace.paths[0][: _first_sampled(trace.paths[0])])
        row = {"input": prompt.get("input", sent), "label": prompt.get("label"), "metadata": prompt.get("metadata", {})}
        self.write(row | {"task": trace.trajectory.task})


@dataclass(slots=True)
class Dpo(JsonLines):
    """Pairs of rollouts of one prompt: the best with the worst, the second best with the second worst, and so on,
    while their rewards differ. What rows are made of waits in `waiting`, a file; rewards and places in it are held."""

    waiting: IO[bytes] = field(kw_only=True)
    _by_prompt: dict[bytes, list[_Candidate]] = field(default_factory=dict)

    def add(self, trace: Trace) -> None:
        reward = trace.trajectory.reward
        if reward is None:
            return
        path, (ids, mask, _) = trace.paths[0], trace.sequences[0]
        messages, first, start = atraj.messages(path), _first_sampled(path), prompt_length(path)
        parts = (messages[:first], ids[:start], messages[first:], ids[start:], mask[start:], reward, trace.source)
        written = self.waiting.write(b"\n".join(map(_json, parts)))
        candidate = _Candidate(-reward, trace.source, self.waiting.tell() - written, written)
        self._by_prompt.setdefault(trace.prompt, []).append(candidate)

    def finish(self) -> None:
        """Write the pairs."""
        for candidates in self._by_prompt.values():
            ranked = sorted(candidates)
            for chosen, rejected in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
                if chosen.cost < rejected.cost:
                    self.write(self._half("chosen", chosen) | self._half("rejected", rejected))

    def _half(self, name: str, candidate: _Candidate) -> Row:
        self.waiting.seek(candidate.start)
        parts = self.waiting.read(candidate.size).split(b"\n")
        names = ("prompt", "prompt_ids", name, *(f"{name}_{what}" for what in ("ids", "mask", "reward", "source")))
        return dict(zip(names, map(orjson.Fragment, parts), strict=True))


class _Candidate(NamedTuple):
    """A rollout of a pair: `cost` is its reward's negative, `start` and `size` are its bytes in the file."""

    cost: float
    source: str
    start: int
    size: int


class Parquet:
    """One row per path, with everything that training needs: ids, mask, logprobs, reward."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        with user_error("--format parquet: pyarrow is not installed; install it, or take sft dpo rlvr", ImportError):
            import pyarrow
            from pyarrow import parquet
        self.rows = 0
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [
                ("input_ids", pyarrow.list_(pyarrow.int32())),
                ("loss_mask", pyarrow.list_(pyarrow.uint8())),
                ("logprobs", pyarrow.list_(pyarrow.float32())),
                ("reward", pyarrow.float32()),
                ("task", pyarrow.string()),
                ("source", pyarrow.string()),
            ]
        )
        self._file = stack.enter_context(parquet.ParquetWriter(path, self._schema, use_dictionary=["task"]))
        self._waiting: list[Row] = []
        stack.callback(self._flush)

    def add(self, trace: Trace) -> None:
        about = _about(trace)
        for arrays in trace.sequences:
            self._waiting.append(dict(zip(_PER_TOKEN, arrays, strict=True)) | about)
        if len(self._waiting) >= PARQUET_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = [self._column(field.name, field.type) for field in self._schema]
        self._file.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self.rows += len(self._waiting)
        self._waiting.clear()

    def _column(self, name: str, kind: Any) -> Any:
        values = [row[name] for row in self._waiting]
        if name not in _PER_TOKEN:
            return self._arrow.array(values, kind)
        ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return self._arrow.ListArray.from_arrays(ends, np.concatenate(values))


def to_data(
    folder: Path, out: Path, *, formats: Sequence[str], filters: Filters, splits: Mapping[str, float]
) -> tuple[Counter[str], dict[str, int]]:
    """Write `out`/FORMAT[.SPLIT].jsonl and tokens[.SPLIT].parquet, all of them or, after an error, none.

    Returns what became of the trajectories, and the rows of each file written. Raises UserError.
    """
    found, shares = files(folder), splits or {"": 1.0}
    counts: Counter[str] = Counter()
    writers: dict[tuple[str, str], Writer] = {}
    with _drafts(out) as draft, contextlib.ExitStack() as stack:
        for name, kind in itertools.product(shares, formats):
            writers[name, kind] = _open(draft / _file_name(kind, name), kind, stack)
        for trace in traces(found, folder, filters, counts):
            split = split_of(trace.prompt, shares)
            if split is None:
                counts["in_no_split"] += 1
                continue
            for kind in formats:
                writers[split, kind].add(trace)
        for writer in writers.values():
            if isinstance(writer, Dpo):
                writer.finish()
    return counts, {_file_name(kind, name): writer.rows for (name, kind), writer in writers.items()}


@contextlib.contextmanager
def _drafts(out: Path) -> Iterator[Path]:
    """A folder whose files take their places in `out` at the end, unless there was an error."""
    with contextlib.ExitStack() as stack:
        with user_error(f"--out: cannot write to {out}", OSError):
            out.mkdir(parents=True, exist_ok=True)
            draft = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out, prefix=".draft-")))
        yield draft
        for file in draft.iterdir():
            file.replace(out / file.name)


def _open(path: Path, kind: str, stack: contextlib.ExitStack) -> Writer:
    if kind == "parquet":
        return Parquet(path, stack)
    file = stack.enter_context(path.open("wb", buffering=WRITE_BYTES))
    if kind == "dpo":
        return Dpo(file, waiting=stack.enter_context(tempfile.TemporaryFile(dir=path.parent)))
    return Sft(file) if kind == "sft" else Rlvr(file)


def _file_name(kind: str, split: str) -> str:
    stem, suffix = ("tokens", "parquet") if kind == "parquet" else (kind, "jsonl")
    return f"{stem}.{split}.{suffix}" if split else f"{stem}.{suffix}"


def _about(trace: Trace) -> Row:
    return {"reward": trace.trajectory.reward, "task": trace.trajectory.task, "source": trace.source}


def _first_sampled(path: Sequence[Step]) -> int:
    return next((index for index, step in enumerate(path) if step.sampled), len(path))


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _hash(ids: Any) -> bytes:
    return hashlib.sha256(_json(ids)).digest()[:16]
