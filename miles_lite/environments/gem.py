"""`gem:ID`: the games of GEM (gem-llm), as `gem:game:GuessTheNumber-v0-easy`; what a game reads is its own affair.

--environment-args are those of `games`, of which the game is told `max_turns` too, and

    total      what of its steps' rewards an episode earns: "sum" or "last"
"""

from __future__ import annotations

import inspect

from miles_lite.environments.environment_args import MAX_TURNS, others
from miles_lite.environments.episodes import TOTAL, Step, total_of
from miles_lite.environments.games import FLAWS, OWN, played
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import Environment
from miles_lite.process.json_types import JsonMapping


class GemGame:
    """See `games.Game`."""

    def __init__(self, name: str, knobs: JsonMapping, seed: int) -> None:
        self._name, self._knobs, self._seed = name, knobs, seed

    def begin(self) -> str:
        import gem

        self._game = gem.make(self._name, **self._knobs)
        said, _ = self._game.reset(seed=self._seed)
        return str(said)

    def step(self, said: str, /) -> Step:
        observed, reward, terminated, truncated, info = self._game.step(said)
        words = [observed, info.get("suffix", "")]
        return Step("\n".join(filter(None, words)), float(reward), bool(terminated or truncated))


def _read(game: type) -> list[str]:
    """The knobs of a game that takes any others, and leaves them unread, as most do; none of one that takes no others,
    or may read them."""
    knobs = inspect.signature(game).parameters.values()
    if not any(each.kind is each.VAR_KEYWORD and each.name.startswith("_") for each in knobs):
        return []
    return [each.name for each in knobs if each.kind is not each.VAR_KEYWORD]


def make(argument: str, args: JsonMapping, *, seed: int) -> Environment:
    """See `hooks.EnvironmentFactory`."""
    import gem
    import gem.envs
    from gem.envs.registration import ENV_REGISTRY

    knobs = others(args, (*OWN, TOTAL))
    if argument not in ENV_REGISTRY:
        games = ", ".join(name for name in ENV_REGISTRY if name.startswith("game:"))
        raise UserError(f"--environment gem:{argument}: no such game; there are {games}")
    with user_error(f"--environment gem:{argument}", *FLAWS):
        game = type(gem.make(argument, **knobs))
    read = _read(game)
    for name in sorted(knobs.keys() - {MAX_TURNS.name, *read}) if read else ():
        raise UserError(f"--environment gem:{argument}: the game reads no '{name}'; it reads {', '.join(read)}")
    return played(
        lambda of: GemGame(argument, knobs, of),
        args,
        label=argument.removeprefix("game:"),
        total=total_of(args, "sum"),
        seed=seed,
    )
