"""The trajectory file: one `.atraj` JSON per rollout, with every token id as an engine read or produced it.

Invariant: reading a file and writing it again gives the same bytes, fields that nobody here knows included; the ids of
a path's steps, end to end, are the sequence that the engine saw, save the last `drop` ids before a step that has it.
docs/trajectories.md describes every field. Canonical bytes: one line of JSON in UTF-8 without spaces, integers of at
most 64 bits, numbers in their shortest form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from miles_lite.errors import UserError, user_error
from miles_lite.process.drafted import drafted
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

FORMAT, VERSION = "atraj", 1
SUFFIX = ".atraj"
TRAINER_LOGPROBS, ADVANTAGES = "trainer_logprobs", "advantages"
"""Lists of a sampled step with a value for each of its `output_ids`, null where training told none."""
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
NOTHING_SAID: JsonMapping = {"role": "assistant", "content": ""}
"""Stands for the messages of a turn that added none, to hold what the template put between two outputs."""
_NULL = type(None)
_FIELDS: Mapping[str, tuple[type, ...]] = {
    "steps": (list,),
    "leaves": (list,),
    "task": (str, _NULL),
    "reward": (int, float, _NULL),
    "metadata": (dict,),
}
_STEP_FIELDS: Mapping[str, tuple[type, ...]] = {
    "role": (str,),
    "content": (str, _NULL),
    "turn": (int,),
    "parent": (int, _NULL),
    "drop": (int,),
    "input_ids": (list,),
    "output_ids": (list,),
    "output_logprobs": (list,),
    TRAINER_LOGPROBS: (list,),
    ADVANTAGES: (list,),
    "temperature": (int, float),
    "tool_call": (dict,),
    "tool_calls": (list,),
    "tool_result": (dict,),
}
_CALL_FIELDS: Mapping[str, tuple[type, ...]] = {"name": (str,), "arguments_json": (str,)}
_RESULT_FIELDS: Mapping[str, tuple[type, ...]] = {"name": (str,), "exit_code": (int,)}


@dataclass(frozen=True, slots=True)
class Step:
    """One message: what was said, and its ids. A view of the file's own object, `data`."""

    data: JsonObject

    @property
    def role(self) -> str:
        return str(self.data["role"])

    @property
    def content(self) -> str:
        return str(self.data["content"] or "")

    @property
    def turn(self) -> int:
        """Number of the model call that this step belongs to."""
        return int(self.data["turn"])

    @property
    def sampled(self) -> bool:
        """True when an engine produced this step; its ids are then `output_ids`."""
        return "output_ids" in self.data

    @property
    def ids(self) -> list[int]:
        """`output_ids` of a sampled step, `input_ids` of any other."""
        ids: list[int] = self.data["output_ids" if self.sampled else "input_ids"]
        return ids

    @property
    def calls(self) -> list[JsonObject]:
        """Calls of tools."""
        return [call for call in [*self.data.get("tool_calls", ()), self.data.get("tool_call")] if call]

    @property
    def texts(self) -> Iterator[str]:
        """What is said in it: its content, its reasoning, the arguments of its calls."""
        yield self.content
        yield str(self.data.get("reasoning") or "")
        yield from (str(call["arguments_json"]) for call in self.calls)

    @property
    def logprobs(self) -> list[float]:
        """Natural-log probabilities of `output_ids`; empty for a step that was not sampled."""
        logprobs: list[float] = self.data.get("output_logprobs", [])
        return logprobs

    @property
    def drop(self) -> int:
        """How many ids at the end of what came before are not in this step's context."""
        return int(self.data.get("drop", 0))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout. A view of the file's own object, `data`; change that to change the file."""

    data: JsonObject

    @property
    def steps(self) -> list[Step]:
        return [Step(step) for step in self.data["steps"]]

    @property
    def reward(self) -> float | None:
        """The rollout's; None when there is none."""
        reward = self.data.get("reward")
        return None if reward is None else float(reward)

    @property
    def task(self) -> str | None:
        return self.data.get("task")

    def paths(self) -> list[list[Step]]:
        """The steps from root to each leaf that counts, earliest first: one path, unless the conversation forked."""
        steps = self.steps
        by_turn: dict[int, list[Step]] = {}
        for step in steps:
            by_turn.setdefault(step.turn, []).append(step)
        parents = {step.turn: step.data.get("parent") for step in steps if step.sampled}
        paths = []
        for leaf in self.data["leaves"]:
            turns, turn = [], leaf
            while turn is not None:
                turns.append(turn)
                turn = parents[turn]
            paths.append([step for number in reversed(turns) for step in by_turn[number]])
        return paths

    def sequences(self) -> Iterator[Arrays]:
        """See `sequences`."""
        return sequences(self.paths())

    def messages(self) -> list[JsonObject]:
        """The first path as chat messages; empty when nothing was sampled."""
        return [message for path in self.paths()[:1] for message in messages(path)]


def sequences(paths: Sequence[Sequence[Step]], *, where: str = "trajectory") -> Iterator[Arrays]:
    """Per path: ids (int32), loss mask (uint8) and logprobs (float32), all of one length, as a Sample has them. A turn
    that paths share is masked after the first; greedy turns (temperature 0) are not masked in. Raises UserError naming
    `where` for ids or logprobs that are no such numbers."""
    trained: set[int] = set()
    for path in paths:
        size = sum(len(step.ids) for step in path)
        ids, mask, logprobs = (np.zeros(size, dtype) for dtype in (np.int32, np.uint8, np.float32))
        end = 0
        for step in path:
            new, start = step.ids, max(0, end - step.drop)
            end = start + len(new)
            keep = step.sampled and step.turn not in trained and step.data.get("temperature", 1.0) > 0
            flaw = f"{where}: turn {step.turn} has an id or a logprob that is none"
            with user_error(flaw, TypeError, ValueError, OverflowError):
                ids[start:end] = new
                logprobs[start:end] = step.logprobs if keep else 0.0
            mask[start:end] = keep
        if np.isnan(logprobs).any():  # what null becomes
            raise UserError(f"{where}: a logprob is null")
        trained.update(step.turn for step in path)
        yield ids[:end], mask[:end], logprobs[:end]


def messages(path: Sequence[Step]) -> list[JsonObject]:
    """A path as the chat messages that were sent and received."""
    return [_message(step) for step in path]


def read(path: Path | str) -> Trajectory:
    """Raises UserError for what is no trajectory of a version known here."""
    try:
        data = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is no trajectory: not JSON ({error}); remove it, or write it again") from error
    return parse(data, where=str(path))


def parse(data: Json, *, where: str = "trajectory") -> Trajectory:
    """Check what the reader relies on, save that ids and logprobs are numbers: `sequences` finds that. Raises UserError
    naming `where` and the field."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{where} is no trajectory: its "format" is not "{FORMAT}"')
    version = data.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{where}: version {version} of the format; this reads up to {VERSION}: take a newer miles_lite"
        )
    _check(data, _FIELDS, where, required=("steps", "leaves"))
    for index, step in enumerate(data["steps"]):
        _check_step(step, f"{where}: steps[{index}]")
    _check_turns(data, where)
    return Trajectory(data)


def _check_turns(data: JsonObject, where: str) -> None:
    parents = {step["turn"]: step.get("parent") for step in data["steps"] if "output_ids" in step}
    for turn in [*data["leaves"], *(parent for parent in parents.values() if parent is not None)]:
        if not isinstance(turn, int) or turn not in parents:
            raise UserError(f"{where}: turn {turn} is named, but no step is its output")
    if any(parent is not None and parent >= turn for turn, parent in parents.items()):
        raise UserError(f"{where}: a turn's parent must come before it")


def dump(trajectory: Trajectory) -> bytes:
    """The file's bytes."""
    return orjson.dumps(trajectory.data, option=orjson.OPT_APPEND_NEWLINE)


def write(trajectory: Trajectory, path: Path) -> None:
    """Write the whole file at once: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafted(path) as draft:
        draft.write_bytes(dump(trajectory))


def build(
    turns: JsonMapping,
    *,
    reward: float | None = None,
    task: str | None = None,
    metadata: JsonMapping | None = None,
) -> Trajectory:
    """A trajectory of what a session answers to GET /sessions/{id}/turns.

    The ids of a turn's new messages are one text of the chat template: the last of them holds the ids, the others none.
    `reward` is the rollout's, and that of its last sampled step.
    """
    steps: list[JsonObject] = []
    for turn in turns["turns"]:
        new = [_input(message, turn) for message in turn["messages"] or [NOTHING_SAID]]
        new[-1]["input_ids"] = turn["prompt_ids"]
        if turn["drop"]:
            new[0]["drop"] = turn["drop"]
        steps += [*new, _output(turn)]
    if steps:
        steps[-1]["reward"] = reward
    return Trajectory(
        {
            "format": FORMAT,
            "version": VERSION,
            "task": task,
            "reward": reward,
            "model": turns["model"],
            "leaves": turns["leaves"],
            "steps": steps,
            "metadata": dict(metadata or {}),
        }
    )


def _check(data: Json, kinds: Mapping[str, tuple[type, ...]], where: str, *, required: Sequence[str] = ()) -> None:
    """Raises UserError for a field of another type, or one that is missing."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is no object")
    for name, value in data.items():
        if name in kinds and not isinstance(value, kinds[name]):
            expected = " or ".join("null" if kind is _NULL else kind.__name__ for kind in kinds[name])
            raise UserError(f"{where}: {name} is {str(value)[:60]!r}, expected {expected}")
    for name in required:
        if name not in data:
            raise UserError(f"{where} has no {name}")


def _check_step(step: Json, where: str) -> None:
    _check(step, _STEP_FIELDS, where, required=("role", "content", "turn"))
    if "output_ids" not in step and "input_ids" not in step:
        raise UserError(f"{where} needs input_ids or output_ids")
    if len(step.get("output_ids", ())) != len(step.get("output_logprobs", ())):
        raise UserError(f"{where} has {len(step.get('output_ids', ()))} output_ids but not as many output_logprobs")
    for name in (TRAINER_LOGPROBS, ADVANTAGES):
        if name in step and len(step[name]) != len(step.get("output_ids", ())):
            raise UserError(f"{where} has {len(step[name])} {name} but not as many output_ids")
    for call in [*step.get("tool_calls", ()), *([step["tool_call"]] if "tool_call" in step else ())]:
        _check(call, _CALL_FIELDS, f"{where}: a tool call", required=tuple(_CALL_FIELDS))
    if "tool_result" in step:
        _check(step["tool_result"], _RESULT_FIELDS, f"{where}: tool_result", required=tuple(_RESULT_FIELDS))


def _input(message: JsonMapping, turn: JsonMapping) -> JsonObject:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] if isinstance(part, dict) else part for part in content)
    step = {"role": message["role"], "content": content or "", "turn": turn["turn"], "input_ids": []}
    return step | _calls(message) | ({"tool_call_id": message["tool_call_id"]} if message.get("tool_call_id") else {})


def _output(turn: JsonMapping) -> JsonObject:
    reply = turn["reply"]
    reasoning = {"reasoning": reply["reasoning_content"]} if reply.get("reasoning_content") else {}
    return {
        "role": "assistant",
        "content": reply.get("content") or "",
        **reasoning,
        **_calls(reply),
        "turn": turn["turn"],
        "parent": turn["parent"],
        "output_ids": turn["output_ids"],
        "output_logprobs": turn["output_logprobs"],
        "temperature": turn["temperature"],
        "finish_reason": turn["finish_reason"],
        "weight_versions": turn["weight_versions"],
    }


def _message(step: Step) -> JsonObject:
    """A call with an id was one of the chat API; any other is in the content already."""
    data = step.data
    message: JsonObject = {"role": data.get("sent_as", step.role), "content": step.content}
    if "reasoning" in data:
        message["reasoning_content"] = data["reasoning"]
    if "tool_call_id" in data:
        message["tool_call_id"] = data["tool_call_id"]
    calls = [call for call in step.calls if "id" in call]
    if calls:
        functions = [{"name": call["name"], "arguments": call["arguments_json"]} for call in calls]
        named = zip(calls, functions, strict=True)
        message["tool_calls"] = [{"id": call["id"], "type": "function", "function": made} for call, made in named]
    return message


def _calls(message: JsonMapping) -> JsonObject:
    """`tool_call` for one call, `tool_calls` for several."""
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = _json_text(call["function"].get("arguments"))
        calls.append({"id": call.get("id"), "name": call["function"]["name"], "arguments_json": arguments})
    return {} if not calls else {"tool_call": calls[0]} if len(calls) == 1 else {"tool_calls": calls}


def _json_text(arguments: Json) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
