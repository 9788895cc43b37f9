"""Turns frozen option dataclasses into command-line flags and back.

Invariant: a flag's name is its field's name (`rollout_batch_size` is `--rollout-batch-size`), its default the field's
default, its help the field's help; there is no second list of options anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from miles_lite.errors import UserError

T = TypeVar("T")

PARALLEL_SIZES = (
    "tensor-model-parallel-size",
    "pipeline-model-parallel-size",
    "context-parallel-size",
    "expert-model-parallel-size",
    "expert-tensor-parallel-size",
)
"""Megatron flags that are accepted with the value 1 and refused above: that parallelism does not exist here yet."""

SHAPE_FLAGS = frozenset(
    """num-layers hidden-size ffn-hidden-size num-attention-heads group-query-attention num-query-groups kv-channels
    qk-layernorm swiglu normalization norm-epsilon rotary-base rotary-percent vocab-size disable-bias-linear
    add-qkv-bias untie-embeddings-and-output-weights use-rotary-position-embeddings position-embedding-type
    make-vocab-size-divisible-by max-position-embeddings seq-length num-experts moe-ffn-hidden-size
    moe-router-topk moe-shared-expert-intermediate-size moe-layer-freq moe-grouped-gemm moe-token-dispatcher-type
    moe-router-load-balancing-type moe-aux-loss-coeff moe-router-score-function moe-router-dtype moe-permute-fusion
    moe-router-enable-expert-bias moe-router-bias-update-rate moe-router-pre-softmax moe-enable-deepep""".split()
)
"""Model-shape flags of Megatron launchers: the shape comes from the checkpoint's config.json, so they are ignored."""

IGNORED_FLAGS = frozenset(
    """sequence-parallel recompute-granularity recompute-method recompute-num-layers attention-dropout hidden-dropout
    attention-softmax-in-fp32 accumulate-allreduce-grads-in-fp32 attention-backend optimizer optimizer-cpu-offload
    overlap-cpu-optimizer-d2h-h2d use-precision-aware-optimizer decoder-last-pipeline-num-layers
    decoder-first-pipeline-num-layers train-backend megatron-to-hf-mode use-miles-router balance-data
    apply-chat-template transformer-impl bf16 no-gradient-accumulation-fusion
    router-assignment-mode router-prefill-policy router-decode-policy router-disable-health-check
    router-health-check-interval-secs router-health-failure-threshold router-health-success-threshold
    miles-router-max-connections miles-router-health-check-failure-threshold""".split()
)
"""Flags of the field's launchers that change nothing here; accepted so that a launcher can be carried over."""


@dataclass(frozen=True)
class Leftovers:
    """What a command line held besides our own flags."""

    sglang: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def show_ignored(self) -> None:
        """Say on stderr which flags were accepted and change nothing."""
        if self.ignored:
            names = ", ".join(f"--{name}" for name in self.ignored)
            print(f"ignored (the checkpoint, this trainer or this router decides): {names}", file=sys.stderr)


def option(default: Any = dataclasses.MISSING, *, help: str, **extra: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    `extra`: nargs, choices, metavar, const; least, above, most and below bound a number; empty=True allows "";
    path=True makes a path absolute, from where the command was started, because actors may run elsewhere; aka are other
    launchers' names of the flag, and read what their values are called here.
    """
    metadata = {"help": help, **extra}
    if isinstance(default, (list, dict)):
        raise TypeError("defaults are immutable: use a tuple")
    return field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises `UserError` instead of printing its whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}\n  see: {self.prog} --help")


def add_group(parser: argparse.ArgumentParser, group: type, *, only: Sequence[str] = (), title: str = "") -> None:
    """Add one flag per field of the option dataclass `group`, or for those in `only` alone, under its `title`."""
    title = title or (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")
    section = parser.add_argument_group(title)
    hints = typing.get_type_hints(group)
    for item in dataclasses.fields(group):
        if "help" not in item.metadata or (only and item.name not in only):
            continue
        names = ("--" + item.name.replace("_", "-"), *item.metadata.get("aka", ()))
        section.add_argument(*names, **_argument(item, hints[item.name]))


def _argument(item: dataclasses.Field, hint: Any) -> dict[str, Any]:
    """argparse keywords of a field: T | None is T, tuple[T, ...] takes several values, bool gets --no-."""
    required = item.default is dataclasses.MISSING
    shown = "" if required or item.default in (None, (), False) else " (default: %(default)s)"
    keywords: dict[str, Any] = {"help": item.metadata["help"].replace("%", "%%") + shown}
    keywords |= {"required": True} if required else {"default": item.default}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint is bool:
        return keywords | {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is tuple:
        keywords["nargs"] = item.metadata.get("nargs", "+")
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        keywords["choices"] = typing.get_args(hint)
        hint = str
    if "nargs" in item.metadata:
        keywords["nargs"] = item.metadata["nargs"]
    for name in ("choices", "metavar", "const"):
        if name in item.metadata:
            keywords[name] = item.metadata[name]
    if "aka" in item.metadata:
        keywords["action"] = _OneOption
    read = item.metadata.get("read", {})
    return keywords | {"type": (lambda value: read.get(value, value)) if read else hint}


class _OneOption(argparse.Action):
    """A flag with several names, which must not be given different values by two of them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("_given", {})
        before, value = given.setdefault(self.dest, (flag, values))
        if before != flag and value != values:
            raise UserError(f"{flag} {values} contradicts {before} {value}: they are one option here, give it once")
        given[self.dest] = (flag, values)
        setattr(namespace, self.dest, values)


def take_group(namespace: argparse.Namespace, group: type[T]) -> T:
    """Build the option dataclass `group` from parsed arguments; a field that was no flag there has its default.

    Raises UserError for a number out of its bounds, one that is not finite, and an empty text.
    """
    values = {}
    for item in dataclasses.fields(group):  # type: ignore[arg-type]
        if "help" in item.metadata and item.name in namespace:
            value = getattr(namespace, item.name)
            for each in value if isinstance(value, list) else [value]:
                _refuse_absurd("--" + item.name.replace("_", "-"), each, item.metadata)
            if item.metadata.get("path") and value is not None:
                value = absolute(value)
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return group(**values)


def absolute(path: str) -> str:
    """The path from where the command was started; `~` is the user's home."""
    return os.path.abspath(os.path.expanduser(path))


def check_folder(flag: str, path: str | Path) -> None:
    """Refuse a folder that could not be made or written into. Nothing is made. Raises UserError naming `flag`."""
    folder = Path(path).expanduser().absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"{flag} {path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {there} cannot be written into")


BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}
"""What an option may say of its number, and in which words."""


def _refuse_absurd(flag: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value == "" and not metadata.get("empty"):
        raise UserError(f"{flag} is empty: give a value, or leave the flag out")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} {value}: must be a finite number")
    bounds = [(BOUNDS[name], bound) for name, bound in metadata.items() if name in BOUNDS]
    if value is not None and not all(holds(value, bound) for (holds, _), bound in bounds):
        raise UserError(f"{flag} {value}: must be " + " and ".join(f"{words} {bound}" for (_, words), bound in bounds))


def sort_leftovers(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> Leftovers:
    """Divide what argparse did not know into SGLang's own flags and ignorable Megatron flags; refuse the rest."""
    sglang: dict[str, Any] = {}
    ignored: list[str] = []
    for flag, values in _with_values(unknown):
        name = flag.removeprefix("--")
        if name.startswith("sglang-router-"):
            raise UserError(f"{flag}: the router has no such option{nearest(flag, _known(parser))}")
        if name.startswith("sglang-"):
            key = name.removeprefix("sglang-").replace("-", "_")
            sglang[key] = True if not values else values[0] if len(values) == 1 else list(values)
        elif name in PARALLEL_SIZES:
            if values != ["1"]:
                raise UserError(
                    f"--{name} {' '.join(values)}: this parallelism does not exist here yet, only 1 is accepted.\n"
                    "  Use data parallelism (--actor-num-gpus-per-node) instead."
                )
            ignored.append(name)
        elif name in SHAPE_FLAGS or name in IGNORED_FLAGS:
            ignored.append(name)
        else:
            hint = nearest(flag, _known(parser))
            raise UserError(f"{parser.prog}: unknown flag {flag}{hint}\n  see: {parser.prog} --help")
    return Leftovers(sglang=sglang, ignored=tuple(ignored))


def _with_values(tokens: Sequence[str]) -> list[tuple[str, list[str]]]:
    pairs: list[tuple[str, list[str]]] = []
    for token in tokens:
        if token.startswith("--"):
            flag, _, value = token.partition("=")
            pairs.append((flag, [value] if value else []))
        elif pairs:
            pairs[-1][1].append(token)
        else:
            raise UserError(f"unexpected argument '{token}': flags start with --")
    return pairs


def _known(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings]


def nearest(name: str, known: Iterable[str]) -> str:
    """ ": did you mean X?", where one of `known` is a typing mistake away from `name`; else ""."""
    close, distance = min(((each, _edits(name, each)) for each in known), key=operator.itemgetter(1), default=("", 99))
    return f": did you mean {close}?" if distance <= max(1, min(3, len(name) // 6)) else ""


def _edits(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours from one to the other (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one):
        older, before, row = before, row, [at + 1]
        for to, each in enumerate(other):
            swap = at and to and letter == other[to - 1] and one[at - 1] == each
            costs = [before[to + 1] + 1, row[to] + 1, before[to] + (letter != each)]
            row.append(min([*costs, older[to - 1] + 1] if swap else costs))
    return row[-1]
