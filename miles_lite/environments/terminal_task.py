"""A task of a terminal as a folder: Harbor's format, and that of Terminal-Bench before it.

    task.toml, instruction.md, environment/, tests/test.sh          https://www.harborframework.com/docs/tasks
    task.yaml, Dockerfile, tests/, run-tests.sh                     https://www.tbench.ai/docs

Invariant: a folder that is no task is a UserError that says what of it is not.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from yaml import YAMLError

from miles_lite.config.yaml_text import read_yaml
from miles_lite.environments.dockerfile import Dockerfile
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import Json, JsonMapping

T = TypeVar("T")
SECONDS = 600.0  # of its tests, where a task does not say


@dataclass(frozen=True, slots=True, eq=False)
class TerminalTask:
    """`files`: where its Dockerfile is, and what that copies; `script`: where its tests begin; `image`: one that there
    is; `seconds`: of its tests, and `environment` their variables."""

    folder: Path
    instruction: str
    files: Path
    script: Path
    image: str | None
    seconds: float
    environment: dict[str, str]

    @property
    def tag(self) -> str:
        """What its image is called when it is built: by what is in its files."""
        digest = hashlib.blake2b(digest_size=8)
        for path in sorted(each for each in self.files.rglob("*") if each.is_file()):
            digest.update(f"{path.relative_to(self.files)}\0".encode() + path.read_bytes())
        return f"miles-lite-task:{digest.hexdigest()}"

    @property
    def dockerfile(self) -> Dockerfile:
        return Dockerfile(self.folder, self.files)


def read_task(folder: Path) -> TerminalTask:
    """Raises UserError."""
    told = _read_config(folder)
    harbor = (folder / "task.toml").is_file()
    said = _read(folder, "instruction.md", "its instruction") if harbor else _part(folder, told, "instruction", str, "")
    if not said.strip():
        raise UserError(f"{folder}: its instruction says nothing")
    script = _own(folder, "tests/test.sh" if harbor else "run-tests.sh")
    verifier = (
        _part(folder, told, "verifier", dict, {}) if harbor else {"timeout_sec": told.get("max_test_timeout_sec")}
    )
    return TerminalTask(
        folder,
        said,
        folder / "environment" if harbor else folder,
        script,
        _part(folder, _part(folder, told, "environment", dict, {}), "docker_image", str, None) if harbor else None,
        _seconds(folder, verifier.get("timeout_sec")),
        {str(name): str(value) for name, value in _part(folder, verifier, "env", dict, {}).items()},
    )


def tasks_of(folder: Path) -> list[TerminalTask]:
    """Those in a folder, by name, or the one that it is. Raises UserError."""
    found = sorted(each.parent for name in ("task.toml", "task.yaml") for each in folder.glob(f"*/{name}"))
    here = [folder] if any((folder / name).is_file() for name in ("task.toml", "task.yaml")) else []
    if not found and not here:
        raise UserError(f"--environment harbor:{folder}: no task in it: a folder with task.toml or task.yaml")
    return [read_task(each) for each in found or here]


def _read_config(folder: Path) -> JsonMapping:
    toml, yaml = folder / "task.toml", folder / "task.yaml"
    with user_error(f"{folder}: its task.toml or task.yaml cannot be read", OSError, ValueError, YAMLError):
        told = tomllib.loads(toml.read_text("utf-8")) if toml.is_file() else read_yaml(yaml.read_text("utf-8"))
    if not isinstance(told, dict):
        raise UserError(f"{folder}: its task.yaml is no mapping")
    return told


def _own(folder: Path, name: str) -> Path:
    """A file of the task's own. Raises UserError for one that is none, as where a link leads out of its folder."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: it has no {name}" + (" of its own" if path.is_file() else ""))
    return path


def _read(folder: Path, name: str, what: str) -> str:
    with user_error(f"{folder}: {what} cannot be read", OSError, UnicodeDecodeError, UserError):
        return _own(folder, name).read_text(encoding="utf-8")


def _seconds(folder: Path, given: Json) -> float:
    if given is None:
        return SECONDS
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise UserError(f"{folder}: the time limit of its tests is {given!r:.80} and no number of seconds")
    return float(given)


def _part(folder: Path, told: JsonMapping, name: str, kind: type[T], default: Json) -> Json:
    value = told.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise UserError(f"{folder}: its {name} is {value!r:.80} and no {kind.__name__}")
    return value
