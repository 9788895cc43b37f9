"""A rollout function of miles' in the place of the generator: it takes prompts, and gives whole groups.

    fn(args, rollout_id, data_source, evaluation=False) -> [[Sample, ...], ...], or an object with `samples`
    with evaluation=True: {dataset: {"rewards": [...], "truncated": [...]}}, or an object with `data`

Invariant: prompts started = trained + unused + those that were given back and wait, as of a `Generator`; samples are
checked before they are kept, and what was given back is dealt again, also after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from miles_lite.config.rollouts import Rollouts
from miles_lite.errors import UserError, Where, user_error
from miles_lite.hooks import RolloutFunction, load_hook
from miles_lite.plugins import contracts, field_args
from miles_lite.plugins.field_sample import Sample, to_own
from miles_lite.rollout.generate import Step
from miles_lite.rollout.prompts import Prompt, Source
from miles_lite.rollout.rewards.answer import number_in
from miles_lite.sample import Group, LocalSamples, Rollout, Status
from miles_lite.scheduler.accounts import Accounts

ROLLOUT_FLAG, EVAL_FLAG = "--rollout-function-path", "--eval-function-path"
UNSAVED = TypeError, ValueError, RecursionError
"""What JSON raises of keys that are no words, and of what holds itself."""


class FieldDataSource:
    """What theirs calls a data source: groups of samples, one for each rollout of a prompt of `source`; what is given
    back is dealt again first. It is a source itself, whose state holds what was given back, too, as JSON has it."""

    def __init__(self, source: Source, samples_per_prompt: int) -> None:
        self._prompts, self._count = source, samples_per_prompt
        self._back: list[list[Sample]] = []
        self.dealt = 0

    # ---- theirs ----------------------------------------------------------------------------------------------------

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Groups of pending samples."""
        back, self._back = self._back[:num_samples], self._back[num_samples:]
        return back + [self._group() for _ in range(num_samples - len(back))]

    def add_samples(self, samples: list[list[Sample]]) -> None:
        self._back += samples

    def _group(self) -> list[Sample]:
        prompt, at = self.prompts[self.take()], self.dealt
        self.dealt += 1
        known = {"prompt": prompt.input, "label": prompt.label, "group_index": at}
        first = at * self._count
        return [Sample(index=first + each, metadata=dict(prompt.metadata), **known) for each in range(self._count)]

    # ---- ours ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Groups that were given back, and not dealt again yet."""
        return len(self._back)

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._prompts.prompts

    @property
    def skipped(self) -> int:
        return self._prompts.skipped

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self) -> int:
        return self._prompts.take()

    def state(self) -> dict[str, Any]:
        """The prompts', and what was given back. Raises UserError for what no file could hold."""
        with user_error(f"{ROLLOUT_FLAG}: a sample that it gave back cannot be saved", *UNSAVED):
            back = json.loads(json.dumps([[one.to_dict() for one in group] for group in self._back], default=_plain))
        return self._prompts.state() | {"given": {"dealt": self.dealt, "back": back}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, or from that of the prompts alone. Raises UserError."""
        self._prompts.restore(state)
        given = state.get("given", {"dealt": 0, "back": []})
        self.dealt, self._back = given["dealt"], [list(map(Sample.from_dict, group)) for group in given["back"]]


def _plain(value: object) -> object:
    """What JSON does not know: arrays as lists, everything else as its words."""
    listed = getattr(value, "tolist", None)
    return str(value) if listed is None else listed()


class GivenRollouts:
    """Called as a `Generator` is; `evaluate` is what --eval-function-path names."""

    def __init__(
        self,
        path: str,
        options: Rollouts,
        *,
        source: FieldDataSource,
        key: str,
        router_url: Callable[[], str],
        accounts: Accounts,
    ) -> None:
        """`key`: of a reward in an object; `router_url`: once it runs; `accounts` is told. Raises UserError."""
        self.accounts, self.step = accounts, Step()
        self._path, self._options, self._key, self._router_url = path, options, key, router_url
        self._source = source
        self._function: RolloutFunction = load_hook(path, flag=ROLLOUT_FLAG)
        self._next = 0

    def updated(self, version: int) -> None:
        """The next step has that number."""
        self._next = version

    def trained(self, step: int) -> None:
        """Nothing is kept of it."""

    async def run(self, check: Callable[[], None]) -> Step:
        """The groups of one step. Raises UserError for an answer that holds none."""
        check()
        contracts.reach(self._router_url())
        self.step = step = Step()
        before = self._source.dealt
        answer = await self._function(field_args.current(), self._next, self._source, evaluation=False)
        told = getattr(answer, "samples", answer)
        try:
            step.groups = [self._group(at, samples) for at, samples in enumerate(told)]
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{ROLLOUT_FLAG} {self._path}: gave no groups of samples: {error}") from error
        step.finished = step.groups
        step.started = self._source.dealt - before
        step.rollouts_done = sum(len(group.rollouts) for group in step.groups)
        self.accounts.started += step.started
        self.accounts.rollouts_started += step.rollouts_done
        self.accounts.trained += len(step.groups)
        self.accounts.unused = max(0, self.accounts.started - self.accounts.trained - self._source.waiting)
        return step

    def _group(self, at: int, samples: Iterable[Sample]) -> Group:
        every = list(samples)
        index = every[0].group_index if every and every[0].group_index is not None else at
        group = Group(index=index, prompt={"row": index, "label": every[0].label if every else None})
        group.rollouts = [self._rollout(place, index, each) for place, each in enumerate(every)]
        return group

    def _rollout(self, place: int, group_index: int, sample: Sample) -> Rollout:
        index = group_index * self._options.n_samples_per_prompt + place if sample.index is None else sample.index
        own = to_own(sample, temperature=self._options.rollout_temperature, version=0)
        rollout = Rollout(
            index=index,
            group_index=group_index,
            samples=[own.record()],
            stored=LocalSamples([own]),
            reward=number_in(sample.reward, self._key),
            status=Status(sample.status.value),
            metadata={**sample.metadata, "response": sample.response},
        )
        if rollout.status in (Status.ABORTED, Status.FAILED):
            rollout.fail(Where.AGENT, f"{ROLLOUT_FLAG}: its status is {rollout.status}")
        return rollout


async def evaluated(path: str, step: int) -> dict[str, float]:
    """The mean reward of each dataset that the function at `path` evaluates; none is 0. Raises UserError."""
    function: RolloutFunction = load_hook(path, flag=EVAL_FLAG)
    answer = await function(field_args.current(), step, None, evaluation=True)
    told = getattr(answer, "data", answer)
    parts = list(told.values()) if isinstance(told, Mapping) else [None]
    if not all(isinstance(each, Mapping) and "rewards" in each for each in parts):
        raise UserError(f"{EVAL_FLAG} {path}: expected {{dataset: {{'rewards': [...]}}}}, got {type(told).__name__}")
    rewards = {
        str(name): [0.0 if one is None else float(one) for one in each["rewards"]] for name, each in told.items()
    }
    return {f"eval/{name}": sum(each) / len(each) for name, each in rewards.items() if each}
