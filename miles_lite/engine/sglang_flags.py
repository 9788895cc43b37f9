"""Which options the installed SGLang has, read from its source text: importing it costs seconds and needs torch.

Invariant: an empty answer means "unknown", never "none"; then the server's own parser is the judge.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Set
from pathlib import Path

from miles_lite.config.redaction import is_secret
from miles_lite.config.spelling import nearest
from miles_lite.errors import UserError

FIELD = re.compile(r"^    (\w+)\s*:", re.MULTILINE)
FLAG = re.compile(r'"--([a-z][\w-]*)"')


DECIDED = {
    "model_path": "--hf-checkpoint",
    "model": "--hf-checkpoint",
    "device": "--device",
    "host": "--bind-host",
    "context_length": "--rollout-max-context-len",
    "random_seed": "--seed",
    **dict.fromkeys(("tp", "tp_size", "tensor_parallel_size"), "--rollout-num-gpus-per-engine"),
    **dict.fromkeys(("nnodes", "node_rank", "dist_init_addr"), "--rollout-num-gpus-per-engine and --num-gpus-per-node"),
    "base_gpu_id": "the slots of --rollout-num-gpus",
    "disaggregation_mode": "--prefill-num-servers or --sglang-config",
    "weight_version": "the weight updates",
    "chat_template": "--chat-template-path",
}
"""SGLang's options that say what another option says already, and which."""


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
    """Refuse a name that is neither an option of this SGLang nor the beginning of one: UserError names the nearest.
    A key or a password is given by its whole name, by which it is hidden."""
    for name in names:
        meant = _meant(name, known)
        flag = f"--sglang-{_dashed(name)}"
        if not meant:
            hint = nearest(flag, (f"--sglang-{_dashed(each)}" for each in known))
            raise UserError(
                f"{flag}: the installed SGLang has no option --{_dashed(name)}{hint}\n"
                "  All of them: python -m sglang.launch_server --help"
            )
        secret = sorted(each for each in meant - {name} if is_secret(each))
        if secret:
            raise UserError(
                f"{flag}: write --sglang-{_dashed(secret[0])}: by its whole name it is hidden in what we write"
            )


def refuse_decided(names: Iterable[str], known: Set[str]) -> None:
    """Refuse an option of SGLang's, or its beginning, that could contradict one of ours: UserError names ours."""
    for name in names:
        decided = sorted(_meant(name, known) & DECIDED.keys())
        if decided:
            raise UserError(
                f"--sglang-{_dashed(name)} is decided by {DECIDED[decided[0]]}, for the engines and the rest alike"
            )


def _meant(name: str, known: Set[str]) -> Set[str]:
    """The options that SGLang's parser would take it for: the one of that name, else those that begin so."""
    return {name} if not known or name in known else {each for each in known if each.startswith(name)}


def _dashed(name: str) -> str:
    return name.replace("_", "-")
