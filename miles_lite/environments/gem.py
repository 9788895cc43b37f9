"""`gem:ID`: the games of GEM (gem-llm), as `gem:game:GuessTheNumber-v0-easy`; what a game reads is its own affair.

--environment-args are the game's own, and

    max_turns  answers of the model in an episode (default 32, and the game's own bound); the game is told it too
    total      what of its steps' rewards an episode earns: "sum" or "last"
    size       tasks of a split (default 1,000,000)
"""

from __future__ import annotations

from miles_lite.environments.episodes import Begun, Step, TextLoop, total_of
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.environments.tasks import PROCEDURAL, Task, Tasks, taken
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping

OWN = ("total", "size")


class Game:
    """See `episodes.TextEpisode`."""

    def __init__(self, name: str, knobs: JsonMapping, task: Task) -> None:
        self._name, self._knobs, self._seed = name, knobs, task.seed
        self._random = GlobalRandom(task.seed)

    async def begin(self) -> Begun:
        import gem

        self._game = await self._random.run(gem.make, self._name, **self._knobs)
        said, _ = await self._random.run(self._game.reset, seed=self._seed)
        return Begun([{"role": "user", "content": said}])

    async def step(self, said: str) -> Step:
        observed, reward, terminated, truncated, info = await self._random.run(self._game.step, said)
        words = [observed, info.get("suffix", "")]
        return Step("\n".join(filter(None, words)), float(reward), bool(terminated or truncated))

    async def close(self) -> None:
        """Nothing is open."""


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`."""
    import gem
    import gem.envs
    from gem.envs.registration import ENV_REGISTRY

    knobs = {name: value for name, value in args.items() if name not in OWN}
    if argument not in ENV_REGISTRY:
        games = ", ".join(name for name in ENV_REGISTRY if name.startswith("game:"))
        raise UserError(f"--environment gem:{argument}: no such game; there are {games}")
    with user_error(f"--environment gem:{argument}", TypeError, ValueError, LookupError):
        gem.make(argument, **knobs)
    size = taken(args, "size", int, PROCEDURAL, least=1)
    return TextLoop(
        tasks=Tasks(argument.removeprefix("game:"), lambda split: size, seed),
        max_turns=taken(args, "max_turns", int, 32, least=1),
        total=total_of(args, "sum"),
        begin=lambda task: Game(argument, knobs, task),
    )
