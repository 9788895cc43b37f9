"""A session server with a real tokenizer and template, whose engine plays the model from a script and keeps a log.

Invariant: the log is the engine's own: the ids it was asked with and those it answered, with their logprobs. It writes
text in pieces of a few letters, encoded one by one, so that what it samples is rarely what a tokenizer would encode.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from miles_lite.sample import Sample
from miles_lite.tito import Tito
from tests.session.engine import Bench, answer, bench

CLIENTS = Path(os.environ.get("MILES_LITE_CLIENTS") or Path(sys.prefix) / "clients")
"""Where `make setup-clients` installs the npm packages of package.json."""
CLIENT_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Template:
    """A model's template, and how a model with it writes a reply."""

    name: str
    opened: bool = False
    """Whether the prompt has already opened the model's reasoning."""
    xml: bool = False
    roles: tuple[str, ...] = ("tool", "user", "system")

    def reply(self, text: str = "", *calls: tuple[str, Mapping[str, Any]], thought: str = "") -> str:
        written = "\n".join([*([text] if text else []), *(self._call(name, given) for name, given in calls)])
        return f"{'' if self.opened else '<think>'}\n{thought or 'Let me see.'}\n</think>\n\n{written}"

    def _call(self, name: str, given: Mapping[str, Any]) -> str:
        if not self.xml:
            called = json.dumps({"name": name, "arguments": given}, ensure_ascii=False)
            return f"<tool_call>\n{called}\n</tool_call>"
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
        parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in texts.items())
        return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


QWEN3 = Template("trl/qwen3")
QWEN3_5 = Template("trl/qwen3_5_think", opened=True, xml=True, roles=("tool", "user"))


@dataclass(frozen=True, slots=True)
class Played:
    """One request to the engine: ids int32 [p] and [n], logprobs float32 [n], and which line of the script it was."""

    prompt: np.ndarray
    output: np.ndarray
    logprobs: np.ndarray
    line: str


@dataclass
class Stage:
    """`play(prompt text)` says the model's next reply and which part of the script it belongs to."""

    bench: Bench
    tito: Tito
    log: list[Played]
    session: str

    @property
    def url(self) -> str:
        return self.bench.client.url

    @property
    def key(self) -> str:
        return self.bench.client.api_key(self.session)

    async def run(self, command: Sequence[str | Path], *, home: Path, **environment: str) -> str:
        """A client's output, of a process that sees loopback and a home of its own. Fails unless it ends well."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "CI": "1",
        } | environment
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env=env,
            cwd=home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            told, complained = await asyncio.wait_for(process.communicate(), CLIENT_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"{command[0]} did not end within {CLIENT_SECONDS} s") from None
        assert process.returncode == 0, f"{command[0]}: {told.decode()[-3000:]}\n{complained.decode()[-3000:]}"
        return told.decode()

    async def samples(self) -> list[Sample]:
        return await self.bench.client.collect(self.session)

    def played(self, line: str = "main") -> list[Played]:
        return [played for played in self.log if played.line == line]

    async def check(self, line: str = "main", *, turns: int) -> Sample:
        """The script's part is one conversation of so many turns, and one sample that equals the engine's log."""
        calls = self.played(line)
        assert len(calls) == turns, f"{len(calls)} of {turns} turns: {[call.line for call in self.log]}"
        last = calls[-1]
        whole = np.concatenate([last.prompt, last.output])
        samples = await self.samples()
        of_line = [sample for sample in samples if any(_holds(sample, call) for call in calls)]
        described = await self.bench.client.describe(self.session)
        assert len(of_line) == 1, f"{line} became {len(of_line)} samples: {described['turns']}, {described['counts']}"
        (sample,) = of_line
        np.testing.assert_array_equal(sample.tokens, whole)
        mask, logprobs = np.zeros(len(whole), np.uint8), np.zeros(len(whole), np.float32)
        for call in calls:
            place = slice(len(call.prompt), len(call.prompt) + len(call.output))
            np.testing.assert_array_equal(whole[place], call.output)
            mask[place], logprobs[place] = 1, call.logprobs
        np.testing.assert_array_equal(sample.loss_mask, mask)
        np.testing.assert_array_equal(sample.logprobs, logprobs)
        assert any(not np.array_equal(call.output, self._canonical(call.output)) for call in calls)
        return sample

    def _canonical(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self.tito.encoder.encode(self.tito.encoder.decode(ids)), np.int32)


def _holds(sample: Sample, call: Played) -> bool:
    start = len(call.prompt)
    return np.array_equal(sample.tokens[start : start + len(call.output)], call.output) and bool(
        sample.loss_mask[start : start + len(call.output)].any()
    )


Play = Callable[[str], tuple[str, str]]


Folders = Callable[[str], Path]
"""The model folder of a template."""


@asynccontextmanager
async def stage(folders: Folders, template: Template, play: Play, **options: Any) -> AsyncIterator[Stage]:
    """`play` is told the whole prompt as text, and says (part of the script, the model's reply)."""
    log: list[Played] = []
    writers: list[_Writer] = []

    def script(body: dict[str, Any]) -> Any:
        (writer,) = writers
        tito = writer.tito
        prompt = np.asarray(body["input_ids"], np.int32)
        line, reply = play(tito.encoder.decode(prompt))
        ids, logprobs = writer.write(reply)
        log.append(Played(prompt, np.asarray(ids, np.int32), np.asarray(logprobs, np.float32), line))
        made = answer(ids, finish={"type": "stop", "matched": ids[-1]})
        made["meta_info"]["output_token_logprobs"] = [
            [value, token, None] for value, token in zip(logprobs, ids, strict=True)
        ]
        return _pieces(made) if body["stream"] else made

    roles = {"tito_allowed_append_roles": template.roles}
    async with bench(folders(template.name), script, context_length=200_000, **roles | options) as b:
        assert b.server.service is not None
        writers.append(_Writer(b.server.service._tito))
        yield Stage(b, writers[0].tito, log, await b.client.create())


@dataclass
class _Writer:
    """Writes text as ids that no tokenizer would write, each with a logprob of its own."""

    tito: Tito
    random: Random = field(default_factory=lambda: Random(0))

    def write(self, text: str) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += map(int, self.tito.encoder.encode(piece))
        ids.append(min(self.tito.stop_ids))
        return ids, [-float(np.float32(self.random.uniform(0.001, 9))) for _ in ids]

    def _pieces(self, text: str) -> list[str]:
        """Control tokens whole, other text in pieces of one to four letters."""
        made: list[str] = []
        start = 0
        for found in self.tito.encoder.control_pattern.finditer(text):
            made += [*self._letters(text[start : found.start()]), found[0]]
            start = found.end()
        return made + self._letters(text[start:])

    def _letters(self, text: str) -> list[str]:
        made = []
        while text:
            size = self.random.randint(1, 4)
            made.append(text[:size])
            text = text[size:]
        return made


def _pieces(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """An answer as the events of a stream, a few tokens each."""
    ids, logprobs = whole["output_ids"], whole["meta_info"]["output_token_logprobs"]
    events = []
    for start in range(0, len(ids), 5):
        end = min(start + 5, len(ids))
        meta = whole["meta_info"] | {"completion_tokens": end, "output_token_logprobs": logprobs[start:end]}
        meta["weight_versions"] = [{"version": "3", "start": 0, "end": end}]
        meta |= {} if end == len(ids) else {"finish_reason": None}
        events.append({"text": "", "output_ids": ids[start:end], "meta_info": meta})
    return events


def program(name: str) -> Path:
    """An npm client; skips the test that asks for one that is not installed."""
    path = CLIENTS / "node_modules" / ".bin" / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: make setup-clients puts it into {CLIENTS}")
    return path


def called(results: str, replies: Sequence[str]) -> str:
    """The reply after as many tool results as the prompt has."""
    return replies[min(results.count("<tool_response>"), len(replies) - 1)]
