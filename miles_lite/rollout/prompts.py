"""Prompts, dealt out in a reproducible order that survives a restart.

Invariant: the order depends on the seed and the epoch alone; `state()` and `restore()` continue it exactly, so a
resumed run sees the prompts the stopped one had not yet taken. A prompt is read when it is dealt.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

from miles_lite.config.environments import is_source
from miles_lite.config.eval_sets import metadata_of
from miles_lite.config.options import Config
from miles_lite.config.rollouts import Data, mixed
from miles_lite.environments import load
from miles_lite.errors import UserError
from miles_lite.rollout.by_place import ByPlace
from miles_lite.rollout.prompt_data import Dealt, EnvironmentRows, Rows, no_environment, open_rows
from miles_lite.rollout.prompt_order import SHUFFLED, Permutation

CHECKED = 10_000
"""Rows of a source that are looked at before anything starts; the others when they are dealt."""
ASKING = ("system", "developer", "user")
"""Roles of messages that have words."""
MADE = 20
"""Of those that an environment makes."""
CHANGED: Mapping[str, str] = {
    "prompts": "--load: the run was made with {before} prompts, --prompt-data now has {now}",
    "shuffled": "--load: the run's order was that of --rollout-shuffle with --rollout-seed {before} (None: not "
    "shuffled), now it is {now}",
    "digest": "--load: --prompt-data holds other prompts than those that the run was made with, or in another order",
}
"""What a run that goes on has as it was, and what is said where it has not."""
BEGIN_ANEW = ". Give it as it was, or --finetune, which takes the weights alone and begins with the first step"
ENVIRONMENT_KEYS: Mapping[str, Any] = {
    "input_key": "prompt",
    "label_key": "label",
    "metadata_key": "metadata",
    "tool_key": "tools",
}
"""Where an environment's rows have what a prompt is."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file. `input` is a string or a list of chat messages; `tools` are those of its --tool-key."""

    row: int
    input: str | list[dict[str, Any]]
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None


class Prompts(ByPlace[Prompt]):
    """The prompts of a source, read when they are asked for; the first CHECKED were read, and `digest` is theirs, and
    the last, which may be half written. Raises UserError with the file and the row's number."""

    def __init__(self, source: str, options: Data) -> None:
        self._rows: Rows
        self._rows, self._places = open_rows(source, environment_rows(options))
        self._options = replace(options, **ENVIRONMENT_KEYS) if is_source(source) else options
        self.digest = "" if self.made else digest(head(self))
        if not self.made and len(self) > CHECKED:
            self.at(len(self) - 1)

    @property
    def made(self) -> bool:
        """Whether they are an environment's, which makes them."""
        return isinstance(self._rows, Dealt)

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: int) -> Prompt:
        row, where, record = self._rows.at(self._places[place])
        return _parse(record, row, where, self._options)


def environment_rows(options: Data) -> EnvironmentRows:
    """The rows of a split of the run's environment. Raises UserError."""

    def rows(split: str) -> Rows:
        if options.environment is None:
            return no_environment(split)
        made = load(options.environment, options.environment_args, seed=options.rollout_seed)
        return Dealt(made.rows(split), f"--environment {options.environment}, {split}")

    return rows


def load_prompts(source: str, options: Data) -> Sequence[Prompt]:
    """The prompts of a source (see prompt_data), the first CHECKED of which were read. Raises UserError with file and
    line number."""
    prompts = Prompts(source, options)
    for _ in head(prompts) if prompts.made else ():
        pass
    return prompts


def load_held_out(source: str, config: Config, name: str) -> Sequence[Prompt]:
    """The prompts of a held-out dataset, with what --eval-config adds to their metadata. Raises UserError."""
    prompts = load_prompts(source, config.held_out(name))
    more = metadata_of(config.evaluation.settings(name))
    return [replace(prompt, metadata={**prompt.metadata, **more}) for prompt in prompts] if more else prompts


def head(prompts: Sequence[Prompt]) -> Iterator[Prompt]:
    """Those that are looked at before a run."""
    looked_at = MADE if isinstance(prompts, Prompts) and prompts.made else CHECKED
    return (prompts[at] for at in range(min(looked_at, len(prompts))))


def digest(prompts: Iterable[Prompt]) -> str:
    """Equal where what they ask is, in the same order, whatever a system message says."""
    found = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        asked = [message for message in as_messages(prompt) if message.get("role") != "system"]
        found.update(json.dumps(asked, default=str).encode())
    return found.hexdigest()


def _parse(record: object, row: int, where: str, options: Data) -> Prompt:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object, found {type(record).__name__}")
    if options.input_key not in record:
        raise UserError(f"{where}: no key '{options.input_key}' (--input-key); it has {', '.join(record) or 'no keys'}")
    text = record[options.input_key]
    if not isinstance(text, str) and not (isinstance(text, list) and all(isinstance(item, dict) for item in text)):
        raise UserError(f"{where}: '{options.input_key}' must be a string or a list of chat messages")
    if not _says(text):
        raise UserError(f"{where}: '{options.input_key}' is empty: there is nothing to answer")
    metadata = record.get(options.metadata_key) or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: '{options.metadata_key}' must be an object")
    if options.label_key and options.label_key not in record:
        raise UserError(f"{where}: no key '{options.label_key}' (--label-key); it has {', '.join(record)}")
    label = record[options.label_key] if options.label_key else None
    tools = _tools(record.get(options.tool_key), where, options.tool_key)
    text = _with_system(text, options.system_prompt)
    return Prompt(row=row, input=text, label=label, metadata=metadata, tools=tools)


def _says(text: str | list[dict[str, Any]]) -> bool:
    """Whether there is something to answer: each message of a user or a system has words."""
    if isinstance(text, str):
        return bool(text.strip())
    return bool(text) and all(message.get("content") for message in text if message.get("role") in ASKING)


def _tools(given: object, where: str, key: str) -> list[dict[str, Any]] | None:
    """A row's tools, also as the text of their JSON."""
    if given is None or given == []:
        return None
    try:
        tools = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        tools = None
    if not isinstance(tools, list) or not all(isinstance(each, dict) for each in tools):
        raise UserError(f"{where}: '{key}' must be a list of tools (--tool-key)")
    return tools


def _with_system(text: str | list[dict[str, Any]], system: str | None) -> str | list[dict[str, Any]]:
    """With the system message of --system-prompt in front, where there is none."""
    if system is None or (isinstance(text, list) and text and text[0].get("role") == "system"):
        return text
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return [{"role": "system", "content": system}, *messages]


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages."""
    return [{"role": "user", "content": prompt.input}] if isinstance(prompt.input, str) else prompt.input


def check_lengths(prompts: Iterable[Prompt], count_tokens: Callable[[Prompt], int], *, limit: int, source: str) -> None:
    """Refuse prompts over `limit` tokens. Raises UserError naming the first one's line."""
    for prompt in prompts:
        length = count_tokens(prompt)
        if length > limit:
            raise UserError(
                f"{source}, line {prompt.row}: the prompt has {length} tokens, the limit is {limit} "
                "(--rollout-max-prompt-len, or the context length). Shorten it, drop it or raise the limit."
            )


class Source(Protocol):
    """Deals prompts without end."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """All of them, in the order of their files."""

    @property
    def skipped(self) -> int:
        """Prompts that were left out so far."""

    def __len__(self) -> int:
        """Prompts of an epoch."""

    def take(self) -> int:
        """The number of the next of `prompts`. Raises UserError when none fits."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class DataSource:
    """Deals prompts, one epoch after another; shuffled by (seed, epoch) when asked.

    `fits`: whether a prompt may be dealt; `skipped` counts those that may not.
    """

    def __init__(
        self, prompts: Sequence[Prompt], options: Data, *, fits: Callable[[Prompt], bool] | None = None
    ) -> None:
        self._prompts = prompts
        self._options = options
        self._fits = fits
        self._epoch = 0
        self._offset = 0
        self.skipped = 0
        self._order = self._order_of(0)
        self._known = {
            "prompts": len(prompts),
            "shuffled": options.rollout_seed if options.rollout_shuffle else None,
            "digest": prompts.digest if isinstance(prompts, Prompts) else "",
        }

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self) -> int:
        """The number of the next of `prompts`; wraps into the next epoch, however small the file. Raises UserError when
        none fits."""
        for _ in range(len(self._prompts) + 1):
            number = self._next()
            if self._fits is None or self._fits(self._prompts[number]):
                return number
            self.skipped += 1
        raise UserError("--overlong-prompts skip: every prompt of --prompt-data is too long; raise the limit")

    def _next(self) -> int:
        if self._offset >= len(self._order):
            self._epoch += 1
            self._offset = 0
            self._order = self._order_of(self._epoch)
        number = self._order[self._offset]
        self._offset += 1
        return number

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "offset": self._offset, **self._known}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises UserError where it would deal other prompts, or in another order."""
        for name, now in self._known.items():
            if (before := state.get(name, now)) != now:  # checkpoints of before name fewer
                raise UserError(CHANGED[name].format(before=before, now=now) + BEGIN_ANEW)
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> Sequence[int]:
        size = len(self._prompts)
        if not self._options.rollout_shuffle:
            return range(size)
        seed = f"{self._options.rollout_seed}-{epoch}"
        if size > SHUFFLED:
            return Permutation(size, seed)
        order = array("q", range(size))
        random.Random(seed).shuffle(order)
        return order


class Mixture:
    """Deals from several sources, each as often as its weight says: next is who is furthest behind its share."""

    def __init__(self, parts: Sequence[tuple[Source, float]]) -> None:
        self._parts = [part for part, _ in parts]
        total = sum(weight for _, weight in parts)
        self._shares = [weight / total for _, weight in parts]
        self._dealt = [0] * len(parts)
        self.prompts = Concatenated([part.prompts for part in self._parts])

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def skipped(self) -> int:
        return sum(part.skipped for part in self._parts)

    def take(self) -> int:
        """The number of the next of `prompts`. Raises UserError."""
        dealt = sum(self._dealt) + 1
        behind = [share * dealt - count for share, count in zip(self._shares, self._dealt, strict=True)]
        at = behind.index(max(behind))
        self._dealt[at] += 1
        return self.prompts.begins[at] + self._parts[at].take()

    def state(self) -> dict[str, Any]:
        return {"parts": [part.state() for part in self._parts], "dealt": list(self._dealt)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises UserError when the sources are others."""
        if len(state.get("parts", ())) != len(self._parts):
            raise UserError("--load: the run was made with other sources in --prompt-data")
        for part, told in zip(self._parts, state["parts"], strict=True):
            part.restore(told)
        self._dealt = list(state["dealt"])


class Concatenated(ByPlace[Prompt]):
    """The prompts of several sources, one behind the other; `begins`: where each begins."""

    def __init__(self, parts: Sequence[Sequence[Prompt]]) -> None:
        self._parts = parts
        self.begins = [0, *accumulate(map(len, parts))][:-1]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def at(self, place: int) -> Prompt:
        part = bisect_right(self.begins, place) - 1
        return self._parts[part][place - self.begins[part]]


def open_source(options: Data, *, fits: Callable[[Prompt], bool] | None = None) -> Source:
    """What deals the prompts of --prompt-data. Raises UserError."""
    parts: list[tuple[Source, float]] = [
        (DataSource(load_prompts(source, options), options, fits=fits), weight)
        for source, weight in mixed(options.prompt_data)
    ]
    return parts[0][0] if len(parts) == 1 else Mixture(parts)
