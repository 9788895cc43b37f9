"""`textarena:ID`: the games of TextArena that one player plays, as `textarena:GuessTheNumber-v0`.

--environment-args are the game's own, and `max_turns` and `size` as of gem. The reward is the game's at its end.
"""

from __future__ import annotations

from miles_lite.environments.episodes import TOTALS, Begun, Step, TextLoop
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.environments.tasks import PROCEDURAL, Task, Tasks, taken
from miles_lite.errors import user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping

OWN = ("max_turns", "size")


class Game:
    """See `episodes.TextEpisode`."""

    def __init__(self, name: str, knobs: JsonMapping, task: Task) -> None:
        self._name, self._knobs, self._seed = name, knobs, task.seed
        self._random = GlobalRandom(task.seed)

    async def begin(self) -> Begun:
        return Begun([{"role": "user", "content": await self._random.run(self._begun)}])

    async def step(self, said: str) -> Step:
        return await self._random.run(self._stepped, said)

    async def close(self) -> None:
        """Nothing is open."""

    def _begun(self) -> str:
        import textarena

        self._game = textarena.make(self._name, **self._knobs)
        self._game.reset(num_players=1, seed=self._seed)
        self._seen = ""
        return self._new()

    def _new(self) -> str:
        """What it has shown since it was last asked: it shows all that was said."""
        said = str(self._game.get_observation()[1])
        seen, self._seen = self._seen, said
        return said.removeprefix(seen).strip("\n")

    def _stepped(self, said: str) -> Step:
        done, _ = self._game.step(action=said)
        if done:
            rewards, _ = self._game.close()
            return Step("", float(rewards[0]), True)
        return Step(self._new())


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`."""
    import textarena

    knobs = {name: value for name, value in args.items() if name not in OWN}
    with user_error(f"--environment textarena:{argument}", TypeError, ValueError, LookupError):
        textarena.make(argument, **knobs)
    size = taken(args, "size", int, PROCEDURAL, least=1)
    return TextLoop(
        tasks=Tasks(argument, lambda split: size, seed),
        max_turns=taken(args, "max_turns", int, 32, least=1),
        total=TOTALS["sum"],
        begin=lambda task: Game(argument, knobs, task),
    )
