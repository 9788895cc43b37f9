"""Games that run in this process, with its random numbers.

--environment-args are the game's own, and

    max_turns     answers of the model in an episode (default 32, and the game's own bound)
    size          tasks of a split (default 1,000,000)
    step_timeout  seconds that the game may take to begin, or to answer (default 60)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from miles_lite.environments.episodes import Begun, Step, TextLoop, Total
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.environments.tasks import PROCEDURAL, Tasks, taken
from miles_lite.process.json_types import JsonMapping

OWN = ("size", "step_timeout")


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
    size = taken(args, "size", int, PROCEDURAL, least=1)
    seconds = float(taken(args, "step_timeout", (int, float), 60.0, least=0.001))
    return TextLoop(
        tasks=Tasks(label, lambda split: size, seed),
        max_turns=taken(args, "max_turns", int, 32, least=1),
        total=total,
        begin=lambda task: Played(game(task.seed), GlobalRandom(task.seed, seconds)),
    )
