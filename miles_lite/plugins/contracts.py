"""Functions in miles' signatures as functions in ours; `CONTRACTS` has one for each flag that has some.

A function is one of theirs when its first parameter is named `args`. Invariant: `args` is the run's options
(`field_args`), a sample a view (`field_sample`); what a function returns means what it means there.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from miles_lite.plugins import field_args, stand_ins
from miles_lite.plugins.field_sample import Sample, of_group, of_rollout, to_own
from miles_lite.process.calls import Call, check_call, check_made, parameters
from miles_lite.sample import Group, Keep, Rollout

if TYPE_CHECKING:
    from miles_lite.train.losses.streams import Streams

Function: TypeAlias = Callable[..., Any]

GENERATED = "generated_samples"
"""Of what an agent function returns: samples in the place of its session's."""


def reward(theirs: Function) -> Function:
    """`async (args, sample, **kw)` as `hooks.RewardFunction`. At that time a sample has no tokens, but its text."""

    async def judge(
        config: Any,
        rollout: Rollout,
        /,
        *,
        response: str,
        label: Any,
        metadata: dict[str, Any],
        prompt: Any = "",
        evaluation: bool = False,
    ) -> Any:
        row = {"input": prompt, "label": label, "metadata": metadata}
        sample = of_rollout(rollout, row, response=response, status=Sample.Status.COMPLETED, reward=None)
        said = await theirs(field_args.args_of(config), sample)
        return dict(said) if isinstance(said, Mapping) else said

    return judge


def group_reward(theirs: Function) -> Function:
    """`async (args, samples, **kw) -> rewards`, with --group-rm, as `hooks.GroupRewardFunction`."""

    async def judge(
        config: Any,
        rollouts: Sequence[Rollout],
        /,
        *,
        label: Any,
        metadata: dict[str, Any],
        prompt: Any,
    ) -> list[Any]:
        row = {"input": prompt, "label": label, "metadata": metadata}
        samples = [of_rollout(rollout, row, reward=None) for rollout in rollouts]
        return list(await theirs(field_args.args_of(config), samples))

    return judge


def group_filter(theirs: Function) -> Function:
    """`(args, samples, **kw)` that returns a bool, or an object with `keep` and `reason`, as `hooks.GroupFilter`."""

    def judge(group: Group, /) -> Any:
        said = theirs(field_args.current(), of_group(group))
        return Keep(bool(said.keep), said.reason) if hasattr(said, "keep") else bool(said)

    return judge


def post_process(theirs: Function) -> Function:
    """`(args, samples)` that returns (raw rewards, rewards) as `hooks.RewardPostProcess`."""

    def process(groups: Sequence[Group], options: Any, /) -> list[float]:
        args = field_args.args_of(options, **vars(field_args.current()))
        samples = [
            of_rollout(rollout, group.prompt) for group in groups for rollout in group.rollouts if rollout.trainable
        ]
        _, rewards = theirs(args, samples)
        return [float(each) for each in rewards]

    return process


def importance(theirs: Function) -> Function:
    """What is called with args, pg_loss, train_log_probs, rollout_log_probs, loss_masks, ... and returns (pg_loss,
    masks, metrics) as `hooks.LossFunction`: the weight that it gives a loss of 1."""

    def weigh(streams: Streams, options: Any, /) -> Any:
        import torch

        ids = streams.sequences.samples
        every = (torch.nonzero(ids == at).flatten() for at in range(streams.sequences.count))
        parts = [part for part in every if len(part)]
        old, engine = streams.old.detach(), streams.comparable.detach()
        lengths = [len(part) for part in parts]
        said = (
            theirs(
                args=field_args.args_of(options, **vars(field_args.current())),
                pg_loss=torch.ones(sum(lengths), dtype=old.dtype, device=old.device),
                train_log_probs=[old[part] for part in parts],
                rollout_log_probs=[engine[part] for part in parts],
                loss_masks=[torch.ones(length, dtype=old.dtype, device=old.device) for length in lengths],
                total_lengths=lengths,
                response_lengths=lengths,
                parallel_state=None,
                max_seq_lens=None,
            )
            if parts
            else (old.clone(), [], {})
        )
        loss, masks, _ = said
        weights = old.new_zeros(len(ids))
        if parts:
            weights[torch.cat(parts)] = loss.detach().to(old.dtype) * torch.cat(list(masks)).to(old.dtype)
        return weights, {"tis": weights}

    return weigh


def generate(theirs: Function) -> Function:
    """`async (args, sample, sampling_params[, evaluation])` as `hooks.AgentFunction`: it speaks to the router itself.

    What it fills in is trained, in the place of a session's samples.
    """
    takes_evaluation = any(one.name == "evaluation" for one in parameters(theirs) or ())

    async def act(
        *,
        base_url: str,
        api_key: str,
        prompt: Any,
        request_kwargs: dict[str, Any],
        metadata: dict[str, Any],
        label: Any,
        sampling: Mapping[str, Any] = MappingProxyType({}),
        router_url: str = "",
        evaluation: bool = False,
        index: int = 0,
        group_index: int = 0,
    ) -> dict[str, Any]:
        args = reach(router_url)
        sample = Sample(prompt=prompt, label=label, metadata=dict(metadata), index=index, group_index=group_index)
        params = {"no_stop_trim": True, "spaces_between_special_tokens": False, **sampling}
        more = {"evaluation": evaluation} if takes_evaluation else {}
        made = await theirs(args, sample, params, **more)
        several = made if isinstance(made, list) else [made]
        if not several or not all(hasattr(each, "tokens") and hasattr(each, "loss_mask") for each in several):
            raise TypeError(
                f"{getattr(theirs, '__name__', theirs)} returned {made!r:.80}: expected a sample, or a list of them"
            )
        temperature = float(sampling.get("temperature", 1.0))
        last = several[-1]
        return {
            **last.metadata,
            GENERATED: [to_own(each, temperature=temperature, version=0) for each in several],
            "response": last.response,
            **({} if last.reward is None else {"reward": last.reward}),
        }

    return act


def whole(theirs: Function) -> Function:
    """`(args, rollout_id, data_source, evaluation=False)`, plain (then it runs in a thread) or async, as
    `hooks.RolloutFunction`; or a class, made once with an object that has `args` and `data_source`, and called with one
    that has `rollout_id` and `evaluation`."""
    made: list[Function] = []

    async def roll(args: Any, rollout_id: int, data_source: Any, /, *, evaluation: bool = False) -> Any:
        function, given = theirs, (args, rollout_id, data_source)
        more: dict[str, Any] = {"evaluation": evaluation}
        if isinstance(theirs, type):
            made.extend([] if made else [theirs(SimpleNamespace(args=args, data_source=data_source))])
            asked = SimpleNamespace(rollout_id=rollout_id, evaluation=evaluation)
            function, more = (lambda: made[0](asked)), {}
            given = ()  # type: ignore[assignment]
        answer = await asyncio.to_thread(function, *given, **more)
        return await answer if inspect.isawaitable(answer) else answer

    return roll


def reach(router_url: str) -> SimpleNamespace:
    """`args`, with where the run's router is."""
    args = field_args.current()
    host, _, port = router_url.rpartition("://")[2].partition("/")[0].rpartition(":")
    args.sglang_router_ip, args.sglang_router_port = host, int(port)
    return args


class Contract(NamedTuple):
    adapt: Callable[[Function], Function]
    call: Call
    """As theirs is called."""


_TOLD = ("args", "pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks", "total_lengths", "response_lengths")
_WHOLE = Contract(whole, Call(("args", "rollout_id", "data_source"), ("evaluation",), waits=None))
_MADE, _ASKED = Call(("input",)), Call(("input",), waits=None)
"""As a class for a whole rollout is made, and its object called."""
CONTRACTS: Mapping[str, Contract] = {
    "--custom-rm-path": Contract(reward, Call(("args", "sample"), waits=True)),
    "--custom-group-rm-path": Contract(group_reward, Call(("args", "samples"), waits=True)),
    "--dynamic-sampling-filter-path": Contract(group_filter, Call(("args", "samples"))),
    "--custom-reward-post-process-path": Contract(post_process, Call(("args", "samples"))),
    "--custom-tis-function-path": Contract(importance, Call((), (*_TOLD, "parallel_state", "max_seq_lens"))),
    "--custom-generate-function-path": Contract(
        generate, Call(("args", "sample", "sampling_params"), more=("evaluation",), waits=True)
    ),
    "--rollout-function-path": _WHOLE,
    "--eval-function-path": _WHOLE,
}


def adapted(hook: Function, *, flag: str, where: str) -> Function | None:
    """`hook` in our signature, where it is in theirs; None where it is not. Raises UserError, which begins with
    `where`, for one that cannot be called as theirs is."""
    contract = CONTRACTS.get(flag)
    if contract is _WHOLE and isinstance(hook, type):
        check_made(hook, of=_MADE, then=_ASKED, where=where)
    elif contract is not None and is_theirs(hook):
        check_call(hook, contract.call, where=where)
    else:
        return None
    return contract.adapt(hook)


def is_theirs(hook: Function) -> bool:
    """Whether its first parameter is `args`."""
    return [one.name for one in parameters(hook) or ()][:1] == ["args"]


prepare = stand_ins.install
"""Makes `import miles` work for a plug-in where miles is not installed."""
