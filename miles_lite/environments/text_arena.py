"""`textarena:ID`: the games of TextArena that one player plays, as `textarena:GuessTheNumber-v0`.

--environment-args are those of `games`. The reward is the game's at its end.
"""

from __future__ import annotations

from miles_lite.environments.environment_args import MAX_TURNS, STEP_TIMEOUT, others
from miles_lite.environments.episodes import TOTALS, Step, answered
from miles_lite.environments.games import FLAWS, OWN, played
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.errors import user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping


class ArenaGame:
    """See `games.Game`."""

    def __init__(self, name: str, knobs: JsonMapping, seed: int) -> None:
        self._name, self._knobs, self._seed = name, knobs, seed

    def begin(self) -> str:
        import textarena

        self._game = textarena.make(self._name, **self._knobs)
        self._game.reset(num_players=1, seed=self._seed)
        self._seen = ""
        return self._new()

    def step(self, said: str, /) -> Step:
        done, _ = self._game.step(action=said)
        if done:
            rewards, _ = self._game.close()
            return Step("", float(rewards[0]), True)
        return Step(self._new())

    def _new(self) -> str:
        """What it has shown since it was last asked: it shows all that was said."""
        said = str(self._game.get_observation()[1])
        seen, self._seen = self._seen, said
        return said.removeprefix(seen).strip("\n")


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`."""
    import textarena  # noqa: F401

    knobs = others(args, (*OWN, MAX_TURNS))
    with user_error(f"--environment textarena:{argument}", *FLAWS, TimeoutError):
        answered(GlobalRandom(0, STEP_TIMEOUT.of(args)).run(ArenaGame(argument, knobs, 0).begin))
    return played(lambda of: ArenaGame(argument, knobs, of), args, label=argument, total=TOTALS["sum"], seed=seed)
