"""A Dockerfile as far as a folder can follow one (https://docs.docker.com/reference/dockerfile/): where commands begin,
and what is copied where.

Invariant: what a folder cannot follow is a UserError that names it; no source leads out of the Dockerfile's folder.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from miles_lite.errors import UserError, user_error

FOLLOWED, UNSAID = {"FROM", "WORKDIR", "COPY", "ADD"}, {"CMD", "LABEL", "MAINTAINER", "EXPOSE", "ENV", "USER"}
"""What of one a folder can follow, and what changes nothing there."""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """That of a task, in `files`, where what it copies is too; there need be none."""

    task: Path
    files: Path

    def instructions(self) -> list[tuple[str, str]]:
        """Each, and what follows it; none where there is no Dockerfile. Raises UserError."""
        file = self.files / "Dockerfile"
        with user_error(f"{self.task}: its Dockerfile cannot be read", OSError, UnicodeDecodeError):
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
        told = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
        return [(word.upper(), rest[0].strip() if rest else "") for word, *rest in told]

    def workdir(self, default: str) -> str:
        """The last WORKDIR, below those before it where it is relative. Raises UserError for one that is none."""
        where = None
        for word, rest in self.instructions():
            if word == "WORKDIR":
                where = (where or PurePosixPath("/")) / rest.strip("\"'")
                if {"$", "\0"} & set(rest) or ".." in where.parts:
                    raise UserError(f"{self.task}: its Dockerfile's WORKDIR {rest} must be written out")
        return default if where is None else str(where)

    def copies(self) -> list[tuple[Path, str]]:
        """What goes where when no container is built. Raises UserError for what a folder cannot follow."""
        made = []
        for word, rest in self.instructions():
            if word in ("COPY", "ADD"):
                with user_error(f"{self.task}: its Dockerfile's {word} {rest:.80}: cannot be followed", ValueError):
                    sources, target = _sources_and_target(rest)
                made += [(self._file(each), target) for each in sources]
            elif word not in FOLLOWED | UNSAID:
                raise UserError(
                    f"{self.task}: its Dockerfile has {word}, which needs a container: --environment-args "
                    '\'{"sandbox": "docker"}\''
                )
        return made

    def _file(self, source: str) -> Path:
        path = (self.files / source.lstrip("/")).resolve()
        if not path.is_relative_to(self.files.resolve()) or not path.exists():
            raise UserError(f"{self.task}: its Dockerfile copies {source}, which is not in {self.files}")
        return path


def _sources_and_target(said: str) -> tuple[list[str], str]:
    """Of a COPY, in words or as JSON. Raises ValueError."""
    words = json.loads(said) if said.startswith("[") else shlex.split(said)
    if elsewhere := [each for each in words if each.startswith(("--from", "<<"))]:
        raise ValueError(f"{elsewhere[0]} needs a container")
    *sources, target = [each for each in words if not each.startswith("--")]
    if not sources or "$" in said:
        raise ValueError("it takes a source and a target, without variables")
    return sources, target
