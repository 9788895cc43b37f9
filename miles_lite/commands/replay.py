"""`miles-lite replay RUN ROLLOUT`: a recorded conversation goes on, from a turn of it, with the run's weights.

Invariant: what is wrong is said before an engine starts; the run's folder is only read.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from miles_lite.agent.replayed import Replayed, due
from miles_lite.agent.session_client import AgentSession, ContextFull
from miles_lite.commands.agent import CONVERSATIONS, serving
from miles_lite.config.engines import Engines, Routing
from miles_lite.config.flags import parse_known, parser_of
from miles_lite.config.model import Context, Model
from miles_lite.config.option import again, option
from miles_lite.config.places import RunFolder
from miles_lite.config.serving import Serving
from miles_lite.config.session_options import Session
from miles_lite.errors import UserError, user_error
from miles_lite.job.claim import claimed, in_use
from miles_lite.model_folder import check_model_folder, fingerprint
from miles_lite.process.admin_key import known_key
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.report.record import Record, read_record
from miles_lite.report.rollout_table import kept_trajectory
from miles_lite.report.visible import visible
from miles_lite.stack.checks import check_serving
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory
from miles_lite.traces.turns import messages_of, turns_to
from miles_lite.weights.folder import copy_tokenizer, version_of

FIRST = "v0"
"""The weights that a run began with."""
PARSERS = ("reasoning_parser", "tool_call_parser")
NO_ANSWER = 1
MODEL = "model"
"""In --run-dir, made anew by each replay of saved weights."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """replay: which rollout, from where on, with which weights."""

    run: str = option(positional=True, help="run folder")
    rollout: int = option(positional=True, help="its number, as in rollouts/ and in the page; --sglang-FLAG goes on")
    turn: int | None = option(
        None, help="the turn that is answered anew; one more than the last: you speak (default: the last)", least=0
    )
    weights: str | None = option(
        None, help="vN of weights/ in the run folder; v0: the model that it began with (default: the newest there)"
    )
    out: str | None = option(None, help="write the trajectory that comes of it to this file", path=True)
    max_tokens: int | None = option(None, help="new tokens an answer (default: as many as in the run)", least=1)
    temperature: float | None = option(None, help="sampling temperature (default: that of the turn)", least=0)
    run_dir: str = again(RunFolder, "run_dir", default="runs/replay", help="folder for the engine's log")


@dataclass(frozen=True)
class Start:
    """The recorded turns that are kept, and the conversation so far: it ends with an answer where a person is to
    speak."""

    turn: int
    turns: Sequence[JsonObject]
    messages: Sequence[JsonObject]


def main(argv: Sequence[str]) -> int:
    """Go on, with a person where stdin is a terminal, else for one answer; the exit code. Raises UserError."""
    options, leftovers = parse_known(parser_of(Replay, prog="miles-lite replay"), argv, Replay)
    leftovers.show_ignored()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder = Path(options.run).expanduser()
    record = read_record(folder, steps=0)
    trajectory = atraj.read(kept_trajectory(folder, options.rollout))
    start = _start(trajectory, options.turn)
    _check_outside(options, folder)
    said = _said(start)
    name, weights, model = _weights(record, options.weights)
    _check_tokens(trajectory, model, given=f"{folder}: rollout {options.rollout}")
    run_dir = Path(options.run_dir)
    check_serving(_serving(record, model, run_dir, leftovers.sglang))
    temperature = start.turns[-1]["temperature"] if options.temperature is None else options.temperature
    longest = options.max_tokens or record.options.get("rollout_max_response_len")
    with ExitStack() as ending:
        ending.enter_context(claimed({"--run-dir": run_dir}))
        gone = f"--weights {name}: {weights} is gone: a run that goes on keeps its last two; ask again"
        with user_error(gone, FileNotFoundError):
            served = assembled(weights, model, run_dir / MODEL, lasting=not in_use(record.folder))
        print(f"weights {name}: {weights}", file=sys.stderr)
        stack = ending.enter_context(serving(_serving(record, served, run_dir, leftovers.sglang)))
        session = ending.enter_context(
            AgentSession(
                stack.session_urls[0], sampling={"temperature": temperature}, turns=start.turns, admin_key=known_key()
            )
        )
        spell = visible if sys.stdout.isatty() else str
        replayed = Replayed(session, [*start.messages], longest if isinstance(longest, int) else None, spell)
        if options.out is not None:
            of = {"run": str(record.folder), "rollout": options.rollout, "turn": start.turn, "weights": name}
            ending.callback(_write, replayed, {"replay_of": of}, options.out)
        return _go_on(replayed, said)


def _go_on(replayed: Replayed, said: str | None) -> int:
    try:
        if sys.stdin.isatty():
            replayed.interact()
        else:
            print(replayed.spell(replayed.answer() if said is None else replayed.say(said)), flush=True)
    except ContextFull as full:
        print(f"the context is full: {full}", file=sys.stderr)
        return NO_ANSWER
    return 0


def _start(trajectory: Trajectory, turn: int | None) -> Start:
    """Raises UserError for a turn that is not there."""
    leaf = trajectory.data["leaves"][0] if trajectory.data["leaves"] else 0
    turns = turns_to(trajectory, leaf)
    if turn is None or turn == leaf:
        return Start(leaf, turns, messages_of(turns, answered=False))
    if turn == leaf + 1 and all(step.turn < turn for step in trajectory.steps):
        return Start(turn, turns, messages_of(turns, answered=True))
    turns = turns_to(trajectory, turn)
    return Start(turn, turns, messages_of(turns, answered=False))


def _said(start: Start) -> str | None:
    """What a person says first, who is no terminal; None where the model speaks first. Raises UserError."""
    if sys.stdin.isatty() or due(start.messages):
        return None
    if not (text := sys.stdin.read().strip()):
        raise UserError(
            f"--turn {start.turn} is after the last answer: give what is said next on stdin, or a turn up to "
            f"{start.turn - 1}, which is answered anew"
        )
    return text


def _weights(record: Record, wanted: str | None) -> tuple[str, Path, Path]:
    """Name and folder of the weights, and the model folder with their tokenizer. Raises UserError."""
    model = check_model_folder(str(record.options.get("hf_checkpoint")), given_as=f"the model of {record.folder}:")
    folders = [path for path in record.folder.glob("weights/v*") if re.fullmatch(r"v\d+", path.name)]
    saved = {FIRST: model} | {path.name: path for path in sorted(folders, key=version_of)}
    name = list(saved)[-1] if wanted is None else wanted
    if name not in saved:
        raise UserError(f"--weights {name}: {record.folder} has {', '.join(saved)}; {FIRST} is what it began with")
    return name, saved[name], model


def _check_tokens(trajectory: Trajectory, model: Path, *, given: str) -> None:
    for _ in atraj.sequences(trajectory.paths(), where=given):  # which looks at every id
        pass
    told = trajectory.data.get("model")
    recorded = told.get("tokenizer") if isinstance(told, dict) else None
    if recorded is not None and recorded != fingerprint(model)["tokenizer"]:
        raise UserError(f"{given} was recorded with another tokenizer than {model} has now: its tokens mean nothing")


def _check_outside(options: Replay, folder: Path) -> None:
    out, run_dir, recorded = options.out, Path(options.run_dir), folder.resolve()
    as_it_is = "what was recorded stays as it is"
    if out is not None and (Path(out).is_dir() or Path(out).resolve().is_relative_to(recorded)):
        raise UserError(f"--out {out}: give a file that is not in the run's folder; {as_it_is}")
    if run_dir.resolve().is_relative_to(recorded) or recorded.is_relative_to((run_dir / MODEL).resolve()):
        raise UserError(f"--run-dir {run_dir}: give a folder that is not in the run's, nor holds it; {as_it_is}")


def _write(replayed: Replayed, metadata: JsonMapping, out: str) -> None:
    """If anything was sampled. Raises UserError."""
    if (made := replayed.trajectory(metadata)) is not None:
        with user_error(f"--out {out}: cannot be written", OSError):
            atraj.write(made, Path(out))
        print(out, file=sys.stderr)


def assembled(weights: Path, model: Path, folder: Path, *, lasting: bool) -> Path:
    """A model folder of those weights: what a run saves has no tokenizer, and does not last while it runs."""
    if weights == model:
        return model
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in weights.iterdir():
        if lasting:
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copy2(file, folder)
    copy_tokenizer(model, folder)
    return folder


def _serving(record: Record, model: Path, run_dir: Path, sglang: Mapping[str, object]) -> Serving:
    """One engine, with what the run says of its model's text."""
    options = record.options
    known = {field.name for field in dataclasses.fields(Session)}
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    session = Session(**{name: value for name, value in told.items() if name in known})  # type: ignore[arg-type]
    args = options.get("sglang_args")
    parsers = {name: args[name] for name in PARSERS if name in args} if isinstance(args, dict) else {}
    limit = options.get("rollout_max_context_len")
    return Serving(
        model=Model(hf_checkpoint=str(model)),
        context=Context(rollout_max_context_len=limit if isinstance(limit, int) else None),
        session=dataclasses.replace(
            session,
            use_session_server="v2",
            session_server_port=None,
            session_journal=False,
            session_journal_dir=None,
            session_sample_picker_path=None,
            session_sample_postprocessor_path=None,
        ),
        routing=Routing(sglang_server_concurrency=CONVERSATIONS),
        engines=Engines(sglang_args={**parsers, **sglang}),
        run=RunFolder(run_dir=str(run_dir)),
    )
