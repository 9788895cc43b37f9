"""A task of a terminal as a folder: Harbor's format, and that of Terminal-Bench before it.

    task.toml, instruction.md, environment/, tests/test.sh          https://www.harborframework.com/docs/tasks
    task.yaml, Dockerfile, tests/, run-tests.sh                     https://www.tbench.ai/docs

Invariant: a folder that is no task is a UserError that says what of it is not.
"""

from __future__ import annotations

import hashlib
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from miles_lite.config.yaml_text import read_yaml
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import Json, JsonMapping

T = TypeVar("T")
SECONDS = 600.0
"""Of its tests, where a task does not say."""
FOLLOWED, UNSAID = {"FROM", "WORKDIR", "COPY", "ADD"}, {"CMD", "LABEL", "MAINTAINER", "EXPOSE", "ENV", "USER"}
"""What of a Dockerfile a folder can follow, and what changes nothing there."""


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

    def dockerfile(self) -> list[tuple[str, str]]:
        """The instructions of its Dockerfile and what follows each; none where there is none."""
        file = self.files / "Dockerfile"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
        told = [line.partition(" ") for line in lines if line and not line.startswith("#")]
        return [(word.upper(), rest.strip()) for word, _, rest in told]

    def workdir(self, default: str) -> str:
        """The last WORKDIR."""
        return next((rest for word, rest in reversed(self.dockerfile()) if word == "WORKDIR"), default)

    def copies(self) -> list[tuple[Path, str]]:
        """What goes where when no container is built. Raises UserError for a Dockerfile that a folder cannot follow."""
        made = []
        for word, rest in self.dockerfile():
            if word in ("COPY", "ADD"):
                *sources, target = [each for each in shlex.split(rest) if not each.startswith("--")]
                made += [(self._file(source), target) for source in sources]
            elif word not in FOLLOWED | UNSAID:
                raise UserError(
                    f"{self.folder}: its Dockerfile has {word}, which needs a container: --environment-args "
                    '\'{"sandbox": "docker"}\''
                )
        return made

    def _file(self, source: str) -> Path:
        path = (self.files / source).resolve()
        if not path.is_relative_to(self.files.resolve()) or not path.exists():
            raise UserError(f"{self.folder}: its Dockerfile copies {source}, which is not in {self.files}")
        return path


def read_task(folder: Path) -> TerminalTask:
    """Raises UserError."""
    told = _told(folder)
    harbor = (folder / "task.toml").is_file()
    with user_error(f"{folder}: its instruction cannot be read", OSError, UnicodeDecodeError, KeyError):
        said = (folder / "instruction.md").read_text(encoding="utf-8") if harbor else told["instruction"]
    script = folder / ("tests/test.sh" if harbor else "run-tests.sh")
    if not script.is_file():
        raise UserError(f"{folder}: it has no {script.relative_to(folder)}")
    verifier = (
        _part(folder, told, "verifier", dict, {}) if harbor else {"timeout_sec": told.get("max_test_timeout_sec")}
    )
    return TerminalTask(
        folder,
        str(said),
        folder / "environment" if harbor else folder,
        script,
        _part(folder, _part(folder, told, "environment", dict, {}), "docker_image", str, None) if harbor else None,
        float(verifier.get("timeout_sec") or SECONDS),
        {str(name): str(value) for name, value in _part(folder, verifier, "env", dict, {}).items()},
    )


def tasks_of(folder: Path) -> list[TerminalTask]:
    """Those in a folder, by name, or the one that it is. Raises UserError."""
    found = sorted(each.parent for name in ("task.toml", "task.yaml") for each in folder.glob(f"*/{name}"))
    here = [folder] if any((folder / name).is_file() for name in ("task.toml", "task.yaml")) else []
    if not found and not here:
        raise UserError(f"--environment harbor:{folder}: no task in it: a folder with task.toml or task.yaml")
    return [read_task(each) for each in found or here]


def _told(folder: Path) -> JsonMapping:
    toml, yaml = folder / "task.toml", folder / "task.yaml"
    with user_error(f"{folder}: its task.toml or task.yaml cannot be read", OSError, ValueError):
        told = tomllib.loads(toml.read_text("utf-8")) if toml.is_file() else read_yaml(yaml.read_text("utf-8"))
    if not isinstance(told, dict):
        raise UserError(f"{folder}: its task.yaml is no mapping")
    return told


def _part(folder: Path, told: JsonMapping, name: str, kind: type[T], default: Json) -> Json:
    value = told.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise UserError(f"{folder}: its {name} is {value!r:.80} and no {kind.__name__}")
    return value
