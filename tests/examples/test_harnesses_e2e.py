"""The harnesses and SWE-bench's instances on a real SGLang engine, whose model knows its part by heart."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import planner
import pytest
import retrying
import subagents
import swe_bench
import tools_agent
from bugs import BUGS
from harness import Run
from make_swe_bench import make_instances
from make_tasks import make_tasks
from prompts import reply
from transcripts import tools_transcript, transcript

from miles_lite.sample import Sample
from miles_lite.session.client import SessionClient
from tests.e2e.job import serving
from tests.examples.episodes import ROLES, Session, episode, load_tokenizer, play, reasons
from tests.examples.taught import make_taught_model
from tests.examples.test_swe_bench import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROW, OTHER = make_tasks("train", count=2, seed=0)
TEMPERATURE = 0.2


def said(script: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in script if message["role"] == "assistant"]


LOOK, RIGHT, DONE = said(transcript(ROW, fix=0))
TYPO = reply("look", "cta *.py")
RETRIED = [TYPO, "hm", *said(transcript(OTHER, fix=0))]
CALLS = said(tools_transcript(ROW, fix=0))
REPORT = f"`{next(bug for bug in BUGS if bug.name == ROW['metadata']['bug']).suspect}` is wrong"


@dataclass(frozen=True)
class Served:
    """A model, its session server, and rows of SWE-bench's format."""

    model: Path
    url: str
    instance: dict[str, Any]

    def play(self, run: Run, row: dict[str, Any]) -> Session:
        """An episode in which the model says what it was taught."""

        async def play_one() -> Session:
            async with SessionClient(self.url) as client:
                return await episode(client, load_tokenizer(self.model), run, row, temperature=TEMPERATURE)

        session = asyncio.run(play_one())
        for sample in session.samples:
            sampled = sample.loss_mask == 1
            assert np.all(np.isfinite(sample.logprobs[sampled]) & (sample.logprobs[sampled] <= 0))
            assert np.all(sample.logprobs[~sampled] == 0)
            assert np.all(sample.temperatures[sampled] == np.float32(TEMPERATURE))
        return session


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("harnesses")
    instances = make_instances(folder / "swe", count=1, seed=0)
    (instance,) = swe_bench.prompts(instances, folder / "swe" / "repos")
    parts: list[tuple[Run, dict[str, Any], list[str]]] = [
        (planner.run, ROW, [LOOK, RIGHT, DONE]),
        (retrying.run, OTHER, RETRIED),
        (subagents.run, ROW, [LOOK, REPORT, RIGHT, DONE]),
        (tools_agent.run, ROW, CALLS),
        (swe_bench.run, instance, [LOOK, RIGHT, DONE]),
    ]

    def samples(model: Path) -> list[Sample]:
        return [sample for run, row, replies in parts for sample in play(model, run, row, replies).samples]

    corpus = [line["content"] for row in (ROW, OTHER) for line in transcript(row, fix=0)]
    corpus += [line["content"] for line in tools_transcript(ROW, fix=0)]
    model = make_taught_model(folder / "model", corpus * 4, samples)
    flags = ("--tito-allowed-append-roles", *ROLES)
    with serving(model, *flags, folder=folder, mark=uuid.uuid4().hex) as url:
        yield Served(model, url, instance)


@pytest.fixture(autouse=True)
def _this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's python3 may have no pytest; ours has."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_the_planners_messages_are_context_of_one_unforked_conversation(served: Served) -> None:
    session = served.play(planner.run, ROW)
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert reasons(session) == {"roots_first": 1}
    assert session.trained() == [[LOOK, RIGHT, DONE]]
    assert session.context(0).count("assistant\nPLAN: ") == 2


def test_a_retry_forks_once_and_each_reply_is_trained_once(served: Served) -> None:
    session = served.play(retrying.run, OTHER)
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_diverged": 1, "forks": 1, "forks_reply": 1}
    assert sorted(session.trained()) == sorted([RETRIED[:3], RETRIED[3:]])
    retried, rest = sorted(range(2), key=lambda number: "exit 127" not in session.context(number))
    assert retrying.NO_COMMAND in session.context(retried)
    assert "exit 127" not in session.context(rest)
    assert RETRIED[2] in session.context(rest)  # what succeeded is context where the errors are gone


def test_subagents_share_no_turn_and_both_are_trained(served: Served) -> None:
    session = served.play(subagents.run, ROW)
    assert session.result["reward"] == 1.0
    assert reasons(session) == {"roots_first": 1, "roots_diverged": 1, "forks": 1, "forks_agent": 1}
    assert sorted(session.trained()) == sorted([[LOOK, REPORT], [RIGHT, DONE]])


def test_the_runtimes_tools_repair_the_repository_in_one_conversation(served: Served) -> None:
    session = served.play(tools_agent.run, ROW)
    assert (session.result["reward"], session.result["exit_status"]) == (1.0, "Submitted")
    assert reasons(session) == {"roots_first": 1}
    assert session.trained() == [CALLS]
    assert session.context(0).count('"exit_code": 0') == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_is_resolved(served: Served, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWE_EXECUTOR", kind)
    session = served.play(swe_bench.run, served.instance)
    result = session.result
    assert (result["reward"], result["exit_status"], result["turns"]) == (1.0, "Submitted", 3)
    assert (result["fail_to_pass"], result["pass_to_pass"]) == (1.0, 1.0)
    assert reasons(session) == {"roots_first": 1}
    assert session.trained() == [[LOOK, RIGHT, DONE]]
    assert session.context(0).count("def ") == 2  # it saw both modules
