"""`miles-lite traces to-data | show | stats | diff`: trajectory files in the terminal, and as datasets.

Invariant: nothing here changes a trajectory file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from miles_lite.config.flags import Parser, parser_of, take
from miles_lite.config.option import option
from miles_lite.errors import UserError
from miles_lite.process.piped import printed
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Step, Trajectory
from miles_lite.traces.datasets import Filters, files, to_data

USAGE = """usage: miles-lite traces COMMAND ...

  to-data DIR --out DIR   SFT, DPO and RLVR JSONL, and Parquet with token ids
  show FILE               one trajectory, step by step
  stats DIR               counts, rewards, tokens, tools
  diff FILE FILE          where two trajectories part
"""


@dataclass(frozen=True, kw_only=True)
class ToData:
    """datasets: what is written, from which trajectories."""

    folder: str = option(positional=True, help="folder of .atraj files")
    out: str = option(help="folder to write")
    format: tuple[str, ...] = option(
        ("sft", "dpo", "rlvr", "parquet"), help="which", choices=("sft", "dpo", "rlvr", "parquet")
    )
    min_reward: float | None = option(None, help="leave out trajectories below this reward, or without one")
    max_reward: float | None = option(None, help="leave out those above it, or without one")
    success: bool = option(False, help="only reward 1: the same as --min-reward 1")
    max_seq_len: int | None = option(None, help="leave out those longer than this many tokens", least=1)
    dedup: bool = option(True, help="leave out trajectories with the same ids as an earlier one")
    split: tuple[str, ...] = option((), help="NAME=SHARE ...: by prompt, the same for ever", metavar="NAME=SHARE")


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    name, rest = (argv[0] if argv else "--help"), list(argv[1:])
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if argv else 2
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "to-data": _to_data,
        "show": _show,
        "stats": _stats,
        "diff": _diff,
    }
    if name not in commands:
        raise UserError(f"miles-lite traces: no command '{name}'; there are {', '.join(commands)}")
    return printed(lambda: commands[name](rest))


def _to_data(argv: Sequence[str]) -> None:
    options = take(parser_of(ToData, prog="miles-lite traces to-data").parse_args(list(argv)), ToData)
    filters = Filters(
        min_reward=1.0 if options.success and options.min_reward is None else options.min_reward,
        max_reward=options.max_reward,
        max_tokens=options.max_seq_len,
        dedup=options.dedup,
    )
    counts, rows = to_data(
        Path(options.folder), Path(options.out), formats=options.format, filters=filters, splits=_splits(options.split)
    )
    print("  ".join(f"{name} {count}" for name, count in counts.items()))
    for name, count in rows.items():
        print(f"{Path(options.out) / name}: {count} rows")


def _splits(given: Sequence[str]) -> dict[str, float]:
    splits: dict[str, float] = {}
    for text in given:
        name, _, share = text.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not re.fullmatch(r"[\w-]+", name) or not value > 0:
            raise UserError(f"--split {text}: give NAME=SHARE, such as train=0.9 test=0.1; a share is above 0")
        if name in splits:
            raise UserError(f"--split: {name} is there twice; give each split another name")
        splits[name] = value
    if sum(splits.values()) > 1 + 1e-9:
        raise UserError(f"--split {' '.join(given)}: shares must add up to at most 1")
    return splits


def _show(argv: Sequence[str]) -> None:
    parser = Parser(prog="miles-lite traces show", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--width", type=int, default=400, help="characters of a step that are shown (default: 400)")
    options = parser.parse_args(list(argv))
    if options.width < 0:
        raise UserError("--width must be at least 0")
    trajectory = _read(options.file)
    print(
        f"task {trajectory.task or '-'}   reward {_number(trajectory.reward)}   paths {len(trajectory.data['leaves'])}"
    )
    for number, step in enumerate(trajectory.steps):
        text = step.content if len(step.content) <= options.width else step.content[: options.width] + "…"
        print(f"\n[{number}] {_headline(step)}\n{text}")


def _stats(argv: Sequence[str]) -> None:
    parser = Parser(prog="miles-lite traces stats", allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(list(argv)).folder
    counts: Counter[str] = Counter()
    tools: Counter[str] = Counter()
    total, scored = 0.0, 0
    for path in files(folder):
        trajectory = atraj.read(path)
        counts["trajectories"] += 1
        if trajectory.reward is not None:
            total, scored = total + trajectory.reward, scored + 1
        counts["successes (reward 1)"] += trajectory.reward == 1
        counts["forked"] += len(trajectory.data["leaves"]) > 1
        for step in trajectory.steps:
            counts["steps"] += 1
            counts["tokens"] += len(step.ids)
            counts["sampled tokens"] += len(step.ids) if step.sampled else 0
            if result := step.data.get("tool_result"):
                tools[f"{result['name']}, exit code {result['exit_code']}"] += 1
    rows = {
        **counts,
        "mean reward": round(total / scored, 4) if scored else "-",
        "without a reward": counts["trajectories"] - scored,
    }
    for name, value in rows.items():
        print(f"{name:24s} {value}")
    for name, count in sorted(tools.items()):
        print(f"tool {name:30s} {count}")


def _diff(argv: Sequence[str]) -> None:
    parser = Parser(prog="miles-lite traces diff", allow_abbrev=False)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args(list(argv))
    one, other = _read(options.one), _read(options.other)
    print(f"reward {_number(one.reward)} | {_number(other.reward)}")
    equal = 0
    for left, right in zip(one.steps, other.steps, strict=False):
        if (left.role, left.content, left.ids) != (right.role, right.content, right.ids):
            break
        equal += 1
    print(f"steps {len(one.steps)} | {len(other.steps)}, the first {equal} equal")
    for sign, steps in (("<", one.steps), (">", other.steps)):
        if equal < len(steps):
            step = steps[equal]
            print(f"{sign} [{equal}] {_headline(step)}")
            print("\n".join(f"{sign} {line}" for line in step.content.splitlines()))
    if equal < min(len(one.steps), len(other.steps)):
        ours, theirs = one.steps[equal].ids, other.steps[equal].ids
        pairs = enumerate(zip(ours, theirs, strict=False))
        same = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        print(f"ids part at {same} of {len(ours)} | {len(theirs)}: {ours[same:][:8]} | {theirs[same:][:8]}")


def _read(file: Path) -> Trajectory:
    """One file, whose ids and logprobs are numbers."""
    if file.is_dir():
        raise UserError(f"{file} is a folder: give one {atraj.SUFFIX} file of it, or see miles-lite traces stats")
    trajectory = atraj.read(file)
    for number, step in enumerate(trajectory.steps):
        if not all(isinstance(value, (int, float)) for value in [*step.ids, *step.logprobs]):
            raise UserError(f"{file}: steps[{number}] has an id or a logprob that is no number")
    return trajectory


def _headline(step: Step) -> str:
    parts = [step.role, f"turn {step.turn}", f"{len(step.ids)} ids"]
    if step.logprobs:
        parts.append(f"mean logprob {fmean(step.logprobs):.3f}")
    if call := step.data.get("tool_call"):
        parts.append(f"calls {call['name']}")
    if result := step.data.get("tool_result"):
        parts.append(f"exit code {result['exit_code']}")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
