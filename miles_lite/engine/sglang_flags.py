"""Which options the installed SGLang has, read from its source text: importing it costs seconds and needs torch.

Invariant: an empty answer means "unknown", never "none"; then the server's own parser is the judge.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from collections.abc import Iterable, Set
from pathlib import Path

from miles_lite.errors import UserError

FIELD = re.compile(r"^    (\w+)\s*:", re.MULTILINE)
FLAG = re.compile(r'"--([a-z][\w-]*)"')


@functools.cache
def known_options() -> frozenset[str]:
    """Underscored names of the server's options, aliases included."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    return scan(Path(next(iter(spec.submodule_search_locations)), "srt"))


def scan(srt: Path) -> frozenset[str]:
    """Options declared in `srt/server_args.py` and, in newer versions, `srt/arg_groups/`."""
    names: set[str] = set()
    for source in [srt / "server_args.py", *sorted(srt.glob("arg_groups/**/*.py"))]:
        if source.is_file():
            text = source.read_text(encoding="utf-8")
            names.update(FIELD.findall(text))
            names.update(flag.replace("-", "_") for flag in FLAG.findall(text))
    return frozenset(names)


def check_options(names: Iterable[str], known: Set[str]) -> None:
    """Refuse a name that is neither an option of this SGLang nor the beginning of one: UserError names the nearest."""
    for name in names:
        if known and not any(option.startswith(name) for option in known):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f": did you mean --sglang-{_dashed(close[0])}?" if close else ""
            raise UserError(
                f"--sglang-{_dashed(name)}: the installed SGLang has no option --{_dashed(name)}{hint}\n"
                "  All of them: python -m sglang.launch_server --help"
            )


def _dashed(name: str) -> str:
    return name.replace("_", "-")
