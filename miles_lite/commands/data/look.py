"""`miles-lite data look FILE`: what a run would be given, as it would read it.

Invariant: a row is read one at a time; what is held of it is a hash of its prompt, its length and its label's kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import again, option
from miles_lite.config.rollouts import Data, located_sources, mixed
from miles_lite.model_folder import check_model_folder
from miles_lite.report.visible import visible
from miles_lite.rollout.prompts import Concatenated, Prompt, Prompts, as_messages
from miles_lite.tito import Tito, tito_of

WIDTH = 110
SHOWN_LABELS = 8


@dataclass(frozen=True, kw_only=True)
class Look:
    """data: what is looked at, and how a run would read it"""

    file: str = option(positional=True, help="prompts, as --prompt-data takes them", path=located_sources)
    environment: str | None = again(Data, "environment")
    environment_args: str | None = again(Data, "environment_args")
    input_key: str = again(Data, "input_key")
    label_key: str | None = again(Data, "label_key")
    metadata_key: str = again(Data, "metadata_key")
    tool_key: str = again(Data, "tool_key")
    system_prompt: str | None = again(Data, "system_prompt")
    hf_checkpoint: str | None = option(None, help="model folder whose template and tokenizer lengths are of", path=True)
    rows: int = option(3, help="rows that are shown", least=0)
    first: int | None = option(None, help="look at this many rows only", least=1)


def main(argv: Sequence[str]) -> int:
    """Print what is in a file. Raises UserError naming the row that cannot be used."""
    options = take(parser_of(Look, prog="miles-lite data look").parse_args(list(argv)), Look)
    data = Data(
        prompt_data=options.file,
        environment=options.environment,
        environment_args=options.environment_args,
        input_key=options.input_key,
        label_key=options.label_key,
        metadata_key=options.metadata_key,
        tool_key=options.tool_key,
        system_prompt=options.system_prompt,
    )
    tito = None if options.hf_checkpoint is None else tito_of(check_model_folder(options.hf_checkpoint))
    prompts = Concatenated([Prompts(source, data) for source, _ in mixed(options.file)])
    count = min(len(prompts), options.first or len(prompts))
    print(f"{options.file}: {len(prompts)} rows" + (f", the first {count} read" if count < len(prompts) else ""))
    for at in range(min(options.rows, count)):
        _show(prompts[at])
    seen: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    lengths = np.zeros(count, np.int32)
    for at in range(count):
        prompt = prompts[at]
        seen[xxhash.xxh3_64_intdigest(repr(as_messages(prompt)).encode())] += 1
        if options.label_key is not None and len(labels) < 10_000:
            labels[str(prompt.label)] += 1
        lengths[at] = _length(prompt, tito)
    _print_statistics(lengths, "tokens" if tito else "characters", seen, labels)
    return 0


def _length(prompt: Prompt, tito: Tito | None) -> int:
    if tito is not None:
        return len(tito.first(as_messages(prompt), tools=prompt.tools).ids)
    return sum(len(str(message.get("content") or "")) for message in as_messages(prompt))


def _show(prompt: Prompt) -> None:
    print(f"\nrow {prompt.row}")
    for message in as_messages(prompt):
        print(f"  {_one_line(message.get('role'))}: {_one_line(message.get('content'))}")
    if prompt.label is not None:
        print(f"  label: {_one_line(prompt.label)}")
    if prompt.metadata:
        print(f"  metadata: {_one_line(', '.join(prompt.metadata))}")
    if prompt.tools:
        print(f"  tools: {len(prompt.tools)}")


def _one_line(text: object, most: int = WIDTH) -> str:
    """Its beginning on one line, with nothing that would steer a terminal."""
    line = " ".join(visible(str(text)[: 8 * most]).split())
    return line if len(line) <= most else f"{line[:most]} ..."


def _print_statistics(lengths: np.ndarray, unit: str, seen: Counter[int], labels: Counter[str]) -> None:
    shares = {"least": 0, "median": 50, "95 %": 95, "99 %": 99, "most": 100}
    points = ", ".join(f"{name} {np.percentile(lengths, share):.0f}" for name, share in shares.items())
    print(f"\nprompts in {unit}: {points}")
    print(f"duplicates: {len(lengths) - len(seen)} rows say what one before them does" * (len(seen) < len(lengths)))
    if labels:
        common = ", ".join(f"{_one_line(label, 30)} x{n}" for label, n in labels.most_common(SHOWN_LABELS))
        print(f"labels: {len(labels)} different; {common}")
