"""Warm-start transcripts: the agent's own messages, with the fix drawn at random from the candidates.

    python transcripts.py --tasks data/train.jsonl --out data/transcripts.jsonl --count 1024 --seed 0

Invariant: the messages are those that the agent would send (a test compares them with a real episode), and the fix is
independent of the task's right one. They teach how to look, edit and submit, not which edit is right: a model that
imitates them perfectly is rewarded with probability 1 / CANDIDATES.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from bugs import BUGS, CANDIDATES
from make_tasks import write_jsonl
from prompts import SUBMIT, SYSTEM, observation, reply


def transcript(row: dict[str, Any], *, fix: int) -> list[dict[str, str]]:
    """The chat messages of an episode that looks, applies candidate `fix` (0 is the right one) and submits."""
    bug = next(bug for bug in BUGS if bug.name == row["metadata"]["bug"])
    (source,) = row["metadata"]["files"].values()
    turns = [
        ("system", SYSTEM),
        ("user", row["input"]),
        ("assistant", reply("look", "cat *.py")),
        ("user", observation(source)),
        ("assistant", reply(f"`{bug.suspect}` is wrong", bug.command(bug.fixes[fix]))),
        ("user", observation("")),
        ("assistant", reply("done", SUBMIT)),
    ]
    return [{"role": role, "content": content} for role, content in turns]


def tools_transcript(row: dict[str, Any], *, fix: int) -> list[dict[str, str]]:
    """The same episode with the tools of tools.json, as tools_agent.py holds it."""
    from tools_agent import system_prompt

    bug = next(bug for bug in BUGS if bug.name == row["metadata"]["bug"])
    ((path, source),) = row["metadata"]["files"].items()
    turns = [
        ("system", system_prompt()),
        ("user", row["input"]),
        ("assistant", _call("read_file", path=path)),
        ("user", _result("read_file", source)),
        ("assistant", _call("replace_text", path=path, old=bug.wrong, new=bug.fixes[fix])),
        ("user", _result("replace_text", "")),
        ("assistant", json.dumps({"answer": "done"})),
    ]
    return [{"role": role, "content": content} for role, content in turns]


def _call(tool: str, **arguments: str) -> str:
    return json.dumps({"tool": tool, "arguments": arguments})


def _result(tool: str, stdout: str) -> str:
    return json.dumps({"tool": tool, "stdout": stdout, "stderr": "", "exit_code": 0}, ensure_ascii=False)


def make_transcripts(
    rows: list[dict[str, Any]],
    *,
    count: int,
    seed: int,
    write: Callable[..., list[dict[str, str]]] = transcript,
) -> list[dict[str, Any]]:
    """`count` lines `{"messages": [...]}`, over the tasks in turn; each class has every candidate equally often.
    `write(row, fix=n)` makes the messages of one."""
    random = Random(seed)
    decks: dict[str, list[int]] = {bug.name: [] for bug in BUGS}
    lines = []
    for index in range(count):
        row = rows[index % len(rows)]
        deck = decks[row["metadata"]["bug"]]
        if not deck:
            deck.extend(random.sample(range(CANDIDATES), CANDIDATES))
        lines.append({"messages": write(row, fix=deck.pop())})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True, help="JSONL made by make_tasks.py")
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.tasks.read_text(encoding="utf-8").splitlines()]
    write_jsonl(args.out, make_transcripts(rows, count=args.count, seed=args.seed))
    print(f"{args.out}: {args.count} transcripts, reward by chance {1 / CANDIDATES}")


if __name__ == "__main__":
    main()
