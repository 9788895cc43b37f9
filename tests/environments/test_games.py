"""Games of the real GEM and TextArena: played to their end, the same for the same seed, whichever run beside them."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as each_of
from hypothesis import settings
from hypothesis import strategies as st

from miles_lite.environments import load
from miles_lite.environments.episodes import TextLoop
from miles_lite.environments.global_random import GlobalRandom
from miles_lite.errors import UserError
from miles_lite.rollout.prompts import open_source
from tests.environments.played import given, play


def halving(form: str) -> Any:
    """A player that halves what is left of 1 to `top`."""
    low, high = 1, 20

    def say(turn: int, text: str) -> str:
        nonlocal low, high
        if turn == 0:
            low, high = (int(each) for each in re.findall(r"number between (\d+) and (\d+)", text)[-1])
        else:
            guess = (low + high) // 2
            low, high = (guess + 1, high) if "higher" in text.rpartition("target number is")[2] else (low, guess - 1)
        return form.format((low + high) // 2)

    return say


def test_a_game_of_gem_is_won_by_who_halves(tiny_model: Path) -> None:
    pytest.importorskip("gem", reason="make setup-environments")
    config = given("gem:game:GuessTheNumber-v0-easy")
    won = play(tiny_model, config, halving("\\boxed{{{}}}"), tasks=4)
    assert [rollout.reward for rollout in won] == [1.0] * 4
    assert all(rollout.metadata["environment"]["label"] == "GuessTheNumber_v0_easy" for rollout in won)
    (lost,) = play(tiny_model, config, lambda turn, text: "no guess")
    assert (lost.reward, lost.metadata["turns"]) == (-0.1, 1)
    with pytest.raises(UserError, match="gem:game:Guess: no such game; there are game:GuessTheNumber"):
        open_source(given("gem:game:Guess").data)
    with pytest.raises(UserError, match="gem:game:Sudoku-v0-easy: "):
        open_source(given("gem:game:Sudoku-v0-easy", {"scale": {}}).data)
    with pytest.raises(
        UserError, match="Number-v0-easy: the game reads no 'max_numbers'; it reads min_number, max_number"
    ):
        open_source(given("gem:game:GuessTheNumber-v0-easy", {"max_numbers": 9, "max_turns": 3}).data)


def test_a_game_of_textarena_is_won_by_who_halves(tiny_model: Path) -> None:
    pytest.importorskip("textarena", reason="make setup-environments")
    config = given("textarena:GuessTheNumber-v0")
    with pytest.raises(UserError, match="textarena:TicTacToe-v0: The number of players has to be 2"):
        open_source(given("textarena:TicTacToe-v0").data)
    (won,) = play(tiny_model, config, halving("[{}]"))
    assert won.reward == 1.0
    assert won.metadata["environment"]["numbers"] == {"finished": 1.0}
    with pytest.raises(UserError, match="textarena:Nothing-v0: "):
        open_source(given("textarena:Nothing-v0").data)


async def test_games_side_by_side_do_not_move_one_another() -> None:
    pytest.importorskip("gem", reason="make setup-environments")
    made = load("gem:game:Game2048-v0-easy", None, seed=3)
    assert isinstance(made, TextLoop)
    task, others = made.tasks.task("train", 5), [made.tasks.task("train", at) for at in range(3)]

    async def moves(game: Any, count: int) -> list[str]:
        await game.begin()
        return [(await game.step(f"\\boxed{{{random_move}}}")).observation for random_move in ("up", "left") * count]

    async def alone() -> list[str]:
        return await moves(made.begin(task), 5)

    async def crowded() -> list[str]:
        games = [made.begin(each) for each in (task, *others)]
        return (await asyncio.gather(*(moves(game, 5) for game in games)))[0]

    before = random.getstate()
    assert await alone() == await crowded()
    assert random.getstate() == before


@settings(max_examples=25, deadline=None)
@each_of(st.lists(st.integers(0, 2), min_size=1, max_size=12))
async def test_each_draws_its_own_numbers_in_whatever_order_they_come(order: list[int]) -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    async def drawn(places: list[int]) -> dict[int, list[tuple[float, float]]]:
        each = {place: GlobalRandom(place, 60.0) for place in set(places)}
        found: dict[int, list[tuple[float, float]]] = {place: [] for place in each}
        for place in places:
            found[place].append(await each[place].run(draw))
        return found

    assert await drawn(order) == await drawn(sorted(order))


async def test_a_game_that_does_not_answer_fails_alone_and_those_that_wait_for_it_are_played() -> None:
    def endless() -> None:
        while True:
            random.random()

    async def run() -> list[object]:
        stuck, *others = (GlobalRandom(seed, 1.0) for seed in range(4))
        ended = [other.run(random.random) for other in others]
        return await asyncio.gather(stuck.run(endless), *ended, return_exceptions=True)

    failed, *drawn = await asyncio.wait_for(run(), 60)
    assert isinstance(failed, TimeoutError)
    assert drawn == [random.Random(seed).random() for seed in range(1, 4)]


async def test_one_whose_rollout_is_over_does_not_keep_the_next_one_waiting() -> None:
    def endless() -> None:
        while True:
            pass

    async def run() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(GlobalRandom(0, 2.0).run(endless), 0.1)
        return await GlobalRandom(1, 2.0).run(random.random)

    assert await asyncio.wait_for(run(), 60) == random.Random(1).random()
