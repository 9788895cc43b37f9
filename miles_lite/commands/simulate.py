"""`miles-lite simulate`: how fast a fleet would be, from the scheduler that a run uses and a model of the rest.

Invariant: no engine, no Ray, no GPU; the same flags and file give the same numbers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from miles_lite.config.flags import parser_of, take
from miles_lite.config.option import option
from miles_lite.config.scheduling import at_once
from miles_lite.errors import UserError, writing
from miles_lite.simulation.case import POLICIES, Case
from miles_lite.simulation.measure import Measured, measure
from miles_lite.simulation.scenario import Scenario, read_scenario
from miles_lite.simulation.side_by_side import simulate_all
from miles_lite.simulation.world import Outcome

COLUMNS = "engines", "S", "at once", "s/step", "tokens/s", "busy", "trainer", "staleness", "discarded", "preempted"
WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Simulate:
    """simulation: every combination of the values given is one row of the table."""

    scenario: str | None = option(None, help="YAML file that names what differs from the defaults", path=True)
    print_scenario: bool = option(False, help="write the scenario with its defaults as YAML, and do nothing else")
    engines: tuple[int, ...] = option((), help="how many (default: the scenario's)", least=1, most=65_536)
    max_weight_staleness: tuple[int, ...] = option((), help="0 is synchronous (default: the scenario's)", least=0)
    rollout_concurrency: tuple[str, ...] = option((), help="rollouts at once on the whole fleet, or auto")
    policy: tuple[str, ...] = option(("paced",), help="paced, or what others do", choices=tuple(POLICIES))
    steps: int | None = option(None, help="batches that are trained (default: the scenario's)", least=2, most=100_000)
    seed: int | None = option(None, help="of lengths, tools and failures (default: the scenario's)", least=0)
    json: str | None = option(
        None, help="write the numbers of the first row to this file, and its gain over sync", path=True
    )
    gantt: str | None = option(None, help="write a picture of the first row: .png, .svg or .pdf", path=True)


def main(argv: Sequence[str]) -> int:
    """Simulate and print the table. Raises UserError."""
    options = take(parser_of(Simulate, prog="miles-lite simulate").parse_args(list(argv)), Simulate)
    scenario = _scenario(options)
    if options.print_scenario:
        import msgspec

        print(msgspec.yaml.encode(scenario).decode(), end="")
        return 0
    if options.gantt is not None and Path(options.gantt).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--gantt {options.gantt}: end it in .png, .svg or .pdf")
    cases = _cases(scenario, options)
    sync = cases[0].at(staleness=0, rollouts=scenario.schedule.rollout_concurrency)
    outcomes = _outcomes(cases if options.json is None else [*cases, sync])
    if options.gantt is not None:
        from miles_lite.simulation.picture import gantt

        with writing("--gantt", Path(options.gantt)):
            gantt(outcomes[cases[0]], Path(options.gantt), title=cases[0].name)
    seen = {case: measure(case.scenario, outcome) for case, outcome in outcomes.items()}
    _print_table({case: seen[case] for case in cases})
    if options.json is not None:
        numbers = seen[cases[0]].as_json()
        numbers["async_vs_sync"] = seen[sync].step_seconds / seen[cases[0]].step_seconds
        with writing("--json", Path(options.json)):
            Path(options.json).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0


def _outcomes(cases: Sequence[Case]) -> dict[Case, Outcome]:
    """Of each, once. Raises UserError where a run would stop."""
    once = list(dict.fromkeys(cases))
    outcomes = dict(zip(once, simulate_all(once), strict=True))
    for case, outcome in outcomes.items():
        if outcome.stopped:
            raise UserError(f"{case.name}: the run would stop: {outcome.stopped}")
    return outcomes


def _scenario(options: Simulate) -> Scenario:
    scenario = Scenario() if options.scenario is None else read_scenario(Path(options.scenario))
    steps = scenario.steps if options.steps is None else options.steps
    seed = scenario.seed if options.seed is None else options.seed
    return replace(scenario, steps=steps, seed=seed)


def _cases(scenario: Scenario, options: Simulate) -> list[Case]:
    """The rows of the table, in the order of the flags."""
    schedule = scenario.schedule
    return [
        Case(replace(scenario, engines=engines), policy).at(staleness=staleness, rollouts=at_once)
        for policy, engines, staleness, at_once in itertools.product(
            options.policy,
            options.engines or (scenario.engines,),
            options.max_weight_staleness or (schedule.max_weight_staleness,),
            [at_once(text) for text in options.rollout_concurrency] or [schedule.rollout_concurrency],
        )
    ]


def _print_table(seen: dict[Case, Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("policy")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for case, measured in seen.items():
        schedule = case.scenario.schedule
        at_once = "" if schedule.rollout_concurrency else "auto "
        table.add_row(
            case.policy,
            str(case.scenario.engines),
            str(schedule.max_weight_staleness),
            f"{at_once}{measured.rollouts:.0f}",
            f"{measured.step_seconds:.1f}",
            f"{measured.tokens_per_second:,.0f}",
            f"{measured.engine_busy:.1%}",
            f"{measured.trainer_busy:.1%}",
            f"{measured.mean_staleness:.1f} ≤ {measured.max_staleness}",
            str(measured.discarded),
            str(measured.preemptions),
        )
    console = Console()
    console.width = max(WIDTH, console.width)
    console.print(table)
