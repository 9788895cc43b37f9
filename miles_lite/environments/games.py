"""Games that run in this process, with its random numbers.

--environment-args are the game's own, and

    max_turns     answers of the model in an episode (default 32, and the game's own bound)
    size          tasks of a split (default 1,000,000)
    step_timeout  seconds that the game may take to begin, or to answer (default 60)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from miles_lite.environments.environment_args import MAX_TURNS, SIZE, STEP_TIMEOUT
from miles_lite.environments.episodes import Begun, Step, TextLoop, Total
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.environments.tasks import Tasks
from miles_lite.process.json_types import JsonMapping

OWN = (SIZE, STEP_TIMEOUT)
FLAWS = (TypeError, ValueError, LookupError, AssertionError)
"""What packages raise for a game, or a knob, that they do not have."""


class Game(Protocol):
    """One game; what it does may take its time, and its numbers from `random` and `numpy.random`."""

    def begin(self) -> str:
        """What it says first."""

    def step(self, said: str, /) -> Step:
        """What it says to that."""


class Played:
    """See `episodes.TextEpisode`."""

    def __init__(self, game: Game, numbers: GlobalRandom) -> None:
        self._game, self._numbers = game, numbers

    async def begin(self) -> Begun:
        return Begun([{"role": "user", "content": await self._numbers.run(self._game.begin)}])

    async def step(self, said: str, /) -> Step:
        return await self._numbers.run(self._game.step, said)

    async def close(self) -> None:
        """Nothing is open."""


def played(game: Callable[[int], Game], args: JsonMapping, *, label: str, total: Total, seed: int) -> TextLoop:
    """The environment of games, each made of its seed. Raises UserError."""
    size, seconds = SIZE.of(args), STEP_TIMEOUT.of(args)
    return TextLoop(
        tasks=Tasks(label, lambda split: size, seed),
        max_turns=MAX_TURNS.of(args),
        total=total,
        begin=lambda task: Played(game(task.seed), GlobalRandom(task.seed, seconds)),
    )
