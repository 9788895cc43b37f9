"""`reasoning-gym:TASK[,TASK ...]`: procedural tasks with answers that can be verified (reasoning-gym).

--environment-args are the task's own difficulty knobs (`{"min_terms": 2, "max_terms": 3}`), and

    size        tasks of a split (default 1,000,000; they are made when they are dealt)
    answer      "tag": between <answer> and </answer>, the package's convention; "text": the whole reply
    curriculum  prompts after which the next level of the package's curriculum begins; 0: none

Of several tasks each is dealt in turn. The score is the package's, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miles_lite.config.spelling import nearest
from miles_lite.environments import single_turn
from miles_lite.environments.environment_args import SIZE, Argument, others
from miles_lite.environments.tasks import Task, Tasks, report
from miles_lite.errors import RolloutError, UserError, Where, user_error
from miles_lite.hooks import RewardFunction, Rows
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

ANSWER, CURRICULUM = Argument("answer", str, "tag", choices=("tag", "text")), Argument("curriculum", int, 0, least=0)
OWN = (SIZE, ANSWER, CURRICULUM)
FLAWS = (ValueError, TypeError, AssertionError, AttributeError)
"""What the package raises for a task or a knob that it does not have."""


@dataclass
class ReasoningGym:
    """See `hooks.Environment`."""

    names: tuple[str, ...]
    knobs: JsonMapping
    size: int
    answer: str
    curriculum: int
    seed: int
    reward: RewardFunction | None = None
    _datasets: dict[tuple[str, str, int], Json] = field(default_factory=dict)

    def rows(self, split: str) -> Rows:
        return self._tasks.rows(split)

    async def agent(self, *, metadata: JsonObject, prompt: Json, **asked: Json) -> JsonMapping:
        """See `hooks.AgentFunction`."""
        task = self._tasks.of(metadata)
        said = await single_turn.run(prompt=prompt, metadata=metadata, **asked)
        dataset, at = self._dataset(task), task.place // len(self.names)
        text: str | None = said["response"].strip()
        if self.answer == "tag":
            from reasoning_gym.utils import extract_answer

            text = extract_answer(text)
        try:
            score = float(dataset.score_answer(answer=text, entry=dataset[at]))
        except Exception as error:
            raise RolloutError(Where.ENVIRONMENT, f"{task.label}: {type(error).__name__}: {error}") from error
        return report(task, **said, reward=score, numbers={"level": float(self._level(task.place))})

    @property
    def _tasks(self) -> Tasks:
        return Tasks(self._name, lambda split: self.size, self.seed, prompt=self._question)

    def _name(self, place: int) -> str:
        return self.names[place % len(self.names)]

    def _question(self, task: Task) -> str:
        return str(self._dataset(task)[task.place // len(self.names)]["question"])

    def _level(self, place: int) -> int:
        return place // self.curriculum if self.curriculum else 0

    def _dataset(self, task: Task) -> Json:
        """The dataset that a task is of: one for each split and level."""
        name, level = self._name(task.place), self._level(task.place)
        key = (name, task.split, level)
        if key not in self._datasets:
            self._datasets[key] = self._made(name, level, seed=Tasks("", len, self.seed).task(task.split, 0).seed)
        return self._datasets[key]

    def _made(self, name: str, level: int, *, seed: int) -> Json:
        """Raises UserError for a task or a knob that the package does not have."""
        import reasoning_gym
        from reasoning_gym.factory import create_curriculum

        with user_error(f"--environment reasoning-gym:{name}", *FLAWS):
            if not self.curriculum:
                return reasoning_gym.create_dataset(name, size=self.size, seed=seed, **self.knobs)
            levels = create_curriculum(name)
            for attribute in levels.attributes:
                for _ in range(level):
                    levels.increment_attr_level(attribute)
            config = levels.generate_configuration({**self.knobs, "size": self.size, "seed": seed})
            return reasoning_gym.create_dataset(name, **vars(config))


def make(argument: str, args: JsonMapping, *, seed: int) -> ReasoningGym:
    """See `hooks.EnvironmentFactory`."""
    from reasoning_gym.factory import DATASETS

    names = tuple(filter(None, argument.split(",")))
    if not names:
        raise UserError(
            f"--environment reasoning-gym: name one of its {len(DATASETS)} tasks, as reasoning-gym:chain_sum"
        )
    for name in names:
        if name not in DATASETS:
            raise UserError(f"--environment reasoning-gym:{name}: no such task{nearest(name, DATASETS)}")
    if "seed" in args:
        raise UserError("--environment-args, seed: the tasks' seed is --rollout-seed")
    made = ReasoningGym(
        names, others(args, OWN), SIZE.of(args), ANSWER.of(args), curriculum=CURRICULUM.of(args), seed=seed
    )
    for place in range(len(names)):
        made.rows("train")[place]
    return made
