"""The user's functions: what each is called with and gives back, and how the one that a flag names is found.

A function of yours is called as its Protocol here is: arguments before the `/` by position, those after the `*` by
name. It may take more with defaults, and `**_` for what later versions add.

Invariant: a function that cannot be found, imported or called as its flag calls it is a UserError that names the flag;
`check_hooks` says so of a run's before anything is started, in a process of its own, so that no module is trusted with
the run's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from miles_lite.errors import UserError
from miles_lite.plugins import contracts
from miles_lite.process.calls import Call, check_call, parameters
from miles_lite.process.json_types import JsonMapping
from miles_lite.process.user_code import load_named
from miles_lite.sample import Group, Rollout, Sample
from miles_lite.sample import Keep as Keep

if TYPE_CHECKING:
    from torch import Tensor

    from miles_lite.config.options import Config
    from miles_lite.config.training import Algorithm
    from miles_lite.train.losses.streams import Streams

CHECK_SECONDS = 300.0
"""Importing torch from a slow disk takes a minute."""
LAST_LINES = 5
LOADING, DONE = "loading ", "done"


class AgentFunction(Protocol):
    """`--custom-agent-function-path`: one rollout of an agent, from its prompt to its end.

    base_url        the OpenAI base URL of the rollout's own session: every token that is sampled through it is kept
    api_key         what opens the session
    prompt          the prompt's text, or its chat messages
    request_kwargs  the run's sampling parameters under the names that OpenAI clients use
    metadata        the prompt's `metadata`, and `max_seq_len`: tokens that a sample may have
    label           the prompt's `label`

    Returns what is said of the rollout: `reward` where no reward function is named, `response` for one that reads it,
    the `agent/` metrics (docs/metrics.md), anything else that JSON holds. None says nothing. What it raises fails this
    rollout alone; `errors.RolloutError` says where it broke. One that names `sampling` (the parameters under engines'
    names), `router_url`, `evaluation`, `index`, `group_index` or `tools` (the row's) is given them too.
    """

    async def __call__(
        self,
        *,
        base_url: str,
        api_key: str,
        prompt: str | list[dict[str, Any]],
        request_kwargs: dict[str, Any],
        metadata: dict[str, Any],
        label: Any,
    ) -> Mapping[str, Any] | None: ...


class AgentMore(TypedDict):
    """What an agent function that names it is given too: `sampling` are the parameters under engines' names, `tools`
    the row's."""

    sampling: Mapping[str, Any]
    router_url: str
    evaluation: bool
    index: int
    group_index: int
    tools: list[dict[str, Any]] | None


class RewardFunction(Protocol):
    """`--custom-rm-path`: the reward of a rollout whose agent came to its end; None: there is none.

    `rollout.metadata` is what the agent function returned, `response` the text in it, label and metadata the prompt's.
    What it names of `RewardMore` it is given too. An object has the reward under --reward-key. A reward that is not
    finite, or an exception, fails the rollout.
    """

    async def __call__(
        self, config: Config, rollout: Rollout, /, *, response: str, label: Any, metadata: dict[str, Any]
    ) -> float | Mapping[str, Any] | None: ...


class RewardMore(TypedDict):
    """What a reward function that names it is given too: the row's prompt, whether it is held out, and what answers
    chat messages with our engines."""

    prompt: str | list[dict[str, Any]]
    evaluation: bool
    ask: Callable[[list[dict[str, Any]]], Awaitable[str]]


class GroupRewardFunction(Protocol):
    """`--custom-group-rm-path`: the rewards of the rollouts of a prompt, in their order; None: there is none.

    They are those that broke nowhere. An exception fails them all.
    """

    async def __call__(
        self,
        config: Config,
        rollouts: Sequence[Rollout],
        /,
        *,
        label: Any,
        metadata: dict[str, Any],
        prompt: str | list[dict[str, Any]],
    ) -> Sequence[float | None]: ...


class Rows(Protocol):
    """Rows as a file of prompts would hold them: `prompt`, and if there are any `label`, `metadata`, `tools`.

    A row depends on its place alone, whichever process asks for it.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> JsonMapping: ...


class Environment(Protocol):
    """An agent function, its prompts and its reward, which belong together.

    `reward` is None where the agent function returns it.
    """

    @property
    def agent(self) -> AgentFunction: ...
    @property
    def reward(self) -> RewardFunction | None: ...
    def rows(self, split: str, /) -> Rows:
        """The prompts of a split, `train` or any other. Raises UserError for one that there is not."""


class EnvironmentFactory(Protocol):
    """`--environment PATH:NAME[:ARGUMENT]`: an environment, of what is behind its name and of --environment-args.

    Called once in each process that needs it. Raises UserError for arguments that are none.
    """

    def __call__(self, argument: str, args: JsonMapping, /, *, seed: int) -> Environment: ...


class GroupFilter(Protocol):
    """`--dynamic-sampling-filter-path`: whether the rollouts of one prompt are worth training on.

    A dropped group is counted under the reason of its `Keep`, or the function's name, and replaced by another prompt's.
    """

    def __call__(self, group: Group, /) -> Keep | bool: ...


class SamplePicker(Protocol):
    """`--session-sample-picker-path`: those of a session's samples that are trained, each at most once."""

    def __call__(self, samples: list[Sample], session_metadata: dict[str, Any], /) -> list[Sample]: ...


class SamplePostprocessor(Protocol):
    """`--session-sample-postprocessor-path`: the samples that a session gives in the end; they are validated again."""

    def __call__(self, samples: list[Sample], session_metadata: dict[str, Any], /) -> list[Sample]: ...


class MessageMatcher(Protocol):
    """`--session-message-matcher`: whether a message that a harness sends again is the one that the session holds."""

    def __call__(self, stored: dict[str, Any], replayed: dict[str, Any], /) -> bool: ...


Advantage = float | tuple[float, ...]
"""Of a rollout: for all its tokens, or one for each turn of its session, in order; later turns have the last one."""


class AdvantageFunction(Protocol):
    """`--advantage-estimator`: the advantage of each rewarded rollout of one group, in their order.

    Pure: rewards and records in, numbers out.
    """

    def __call__(self, rollouts: Sequence[Rollout], options: Algorithm, /) -> Sequence[Advantage]: ...


class RewardPostProcess(Protocol):
    """`--custom-reward-post-process-path`: rewards in the place of those that rollouts have, before advantages.

    One for each rollout that can be trained (`Rollout.trainable`), group by group, in order. Pure. Estimators with
    --disable-rewards-normalization take them as they are; what is logged stays what was earned.
    """

    def __call__(self, groups: Sequence[Group], options: Algorithm, /) -> Sequence[float]: ...


class RolloutFunction(Protocol):
    """`--rollout-function-path`, `--eval-function-path`: a whole rollout, in miles' signature (docs/extend.md)."""

    async def __call__(self, args: Any, rollout_id: int, data_source: Any, /, *, evaluation: bool = False) -> Any: ...


class LossFunction(Protocol):
    """`--loss-type`, `--custom-loss-function-path`: the loss of each token of a packed pass, and metrics, each float32
    [N]; `--custom-tis-function-path`: a weight for it instead.

    Pure. It reduces, masks and weighs nothing: the learner does, the same for each. The names of the metrics depend on
    the options alone.
    """

    def __call__(self, streams: Streams, options: Algorithm, /) -> tuple[Tensor, dict[str, Tensor]]: ...


HOOKS: Mapping[str, type] = {
    "--environment": EnvironmentFactory,
    "--custom-agent-function-path": AgentFunction,
    "--custom-generate-function-path": AgentFunction,
    "--rollout-function-path": RolloutFunction,
    "--eval-function-path": RolloutFunction,
    "--custom-rm-path": RewardFunction,
    "--custom-group-rm-path": GroupRewardFunction,
    "--dynamic-sampling-filter-path": GroupFilter,
    "--session-sample-picker-path": SamplePicker,
    "--session-sample-postprocessor-path": SamplePostprocessor,
    "--session-message-matcher": MessageMatcher,
    "--custom-reward-post-process-path": RewardPostProcess,
    "--advantage-estimator": AdvantageFunction,
    "--loss-type": LossFunction,
    "--custom-loss-function-path": LossFunction,
    "--custom-tis-function-path": LossFunction,
}


MORE: Mapping[type, tuple[str, ...]] = {
    AgentFunction: tuple(AgentMore.__annotations__),
    RewardFunction: tuple(RewardMore.__annotations__),
}
"""What a function is given besides, if it has parameters of these names."""


def load_hook(path: str, *, flag: str) -> Callable[..., Any]:
    """The function at `path` (see user_code), which can be called as the Protocol of `flag`; one in miles' signature
    as one in ours.

    Raises UserError naming `flag`.
    """
    contracts.prepare()
    hook: Callable[..., Any] = load_named(path, given_as=flag)
    where = f"{flag} {path}"
    hook = contracts.adapted(hook, flag=flag, where=where) or hook
    check_hook(hook, HOOKS[flag], where=where)
    return hook


def check_hook(hook: Callable[..., Any], protocol: type, *, where: str) -> None:
    """Refuse what is not as its Protocol is. Raises UserError, which begins with `where`."""
    if isinstance(hook, type) and protocol is not EnvironmentFactory:
        raise UserError(f"{where}: is a class: name a function, or an object of it")
    check_call(hook, Call.of(protocol, more=MORE.get(protocol, ())), where=where)


def named(function: Callable[..., Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Of `more` what a function has parameters for."""
    has = parameters(function) or ()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in has)
    names = {each.name for each in has}
    return {name: value for name, value in more.items() if takes_all or name in names}


def hooks_of(*groups: object) -> dict[str, str]:
    """What the flags of HOOKS name in these option groups, matchers that are built in left out."""
    named = {flag: flag.removeprefix("--").replace("-", "_") for flag in HOOKS}
    given = {
        flag: getattr(group, name, None) for flag, name in named.items() for group in groups if hasattr(group, name)
    }
    return {flag: path for flag, path in given.items() if path and ("." in path or ":" in path)}


def check_hooks(hooks: Mapping[str, str]) -> None:
    """Load the function of each flag in another process. Raises UserError for the first that cannot be used."""
    if not hooks:
        return
    with tempfile.TemporaryDirectory(prefix="miles_lite-hooks-") as folder:
        verdict, said = Path(folder, "verdict"), Path(folder, "said")
        with said.open("wb") as output:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "miles_lite.hooks", json.dumps(dict(hooks)), str(verdict)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    timeout=CHECK_SECONDS,
                    check=False,
                )
                code = done.returncode
            except subprocess.TimeoutExpired:
                code = None
        progress = verdict.read_text().split("\0") if verdict.exists() else [""]
        if progress[-1] == DONE:
            return
        loading = progress[-1].removeprefix(LOADING)
        if loading == progress[-1]:
            raise UserError(progress[-1])
        how = f"ended the process (exit code {code})" if code is not None else f"took over {CHECK_SECONDS:g} s"
        last = said.read_bytes()[-4096:].decode(errors="replace").splitlines()[-LAST_LINES:]
        raise UserError("\n  ".join([f"{loading}: its import {how}", *last]))


def _judge(hooks: Mapping[str, str], verdict: Path) -> None:
    """Append to `verdict`, between NULs, what is loaded and then the first flaw, or DONE."""
    with verdict.open("w", encoding="utf-8", errors="replace") as file:
        for flag, path in hooks.items():
            file.write(f"\0{LOADING}{flag} {path}")
            file.flush()
            try:
                load_hook(path, flag=flag)
            except UserError as error:
                file.write(f"\0{error}")
                return
        file.write(f"\0{DONE}")


if __name__ == "__main__":
    _judge(json.loads(sys.argv[1]), Path(sys.argv[2]))
