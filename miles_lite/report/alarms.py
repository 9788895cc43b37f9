"""What is wrong with a run, by rules over its record; the gravest first.

Invariant: a rule is pure, raises nothing whatever a record lacks, and says its threshold, its evidence and what to do.
One more rule is a function and its place in RULES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from statistics import fmean, median, stdev

from miles_lite.report import metric_names as names
from miles_lite.report.last_steps import FEW_LOOKS, commonest, looks_at_engines, numbers, of_last_steps, percent
from miles_lite.report.record import LAST_ROLLOUTS, LAST_STEPS, Record

WINDOW = LAST_STEPS
"""Steps at the end of a run that rules look at."""
FAILURE_SHARE, FAILURES_OF, FEW_FAILURES = 0.05, LAST_ROLLOUTS, 3
NO_GRADIENT_SHARE = 0.9
FLAT_STEPS, FLAT_GAIN, LEARNED = 24, 0.02, 0.9
COLLAPSE_SHARE, COLLAPSE_BY = 0.6, 0.1
ENTROPY_SHARE = 0.1
GAP_NATS, GAP_GROWTH = 0.02, 5.0
TRUNCATED_SHARE = 0.3
SPIKE, SPIKE_WITHIN = 10.0, 20
RESTARTS = 3.0
TOOL_SHARE, ONE_TOOL_SHARE = 0.6, 0.4
STALE_SHARE, LEAST_BOUND = 0.9, 2.0
"""Of the bound, and the least bound that is not meant to be reached."""
DISK_GB, DISK_STEPS, DISK_WITHIN, DISK_FEW = 1.0, 10, 20, 10
"""Free; steps that it lasts, at the pace of so many, of which there must be a few."""
IDLE_SHARE = 0.25
DRIFT_SHARE = 0.05
UNPRINTABLE = {"role", "no_suffix", "reanchored"}
"""Why a history forks although nothing in it was changed: its template cannot go on from it."""
KV_FULL = 0.95


@dataclass(frozen=True)
class Alarm:
    """What is wrong, how one sees it, and what to do about it."""

    rule: str
    title: str
    evidence: str
    advice: str


Said = tuple[str, str, str] | None
"""Title, evidence, advice."""


def alarms(record: Record) -> list[Alarm]:
    """Of all rules that have something to say."""
    return [Alarm(name, *said) for name, rule in RULES.items() if (said := rule(record)) is not None]


def _nothing_finishes(record: Record) -> Said:
    last = of_last_steps(record, 2)
    if not last or any(row["where"] is None for row in last):
        return None
    where, why = commonest(last)
    evidence = f"all {len(last)} rollouts of the last steps failed, most at {where}: {why}"
    return "No rollout comes to an end of its own", evidence, "See the failures below, and logs/ of the run folder."


def _failures(record: Record) -> Said:
    last = record.rollouts[-FAILURES_OF:]
    failed = [row for row in last if row["where"] is not None]
    if len(failed) < FEW_FAILURES or len(failed) / len(last) <= FAILURE_SHARE:
        return None
    where, why = commonest(failed)
    share, most = percent(len(failed) / len(last)), percent(FAILURE_SHARE)
    evidence = f"{share} of the last {len(last)}, above {most}; most at {where}: {why}"
    return "Rollouts fail", evidence, "They have no reward and are trained by nobody. Mend the boundary that is named."


def _no_gradient(record: Record) -> Said:
    shares = record.values(names.ZERO_STD)[-WINDOW:]
    if len(shares) < WINDOW or fmean(shares) <= NO_GRADIENT_SHARE:
        return None
    reward = fmean(record.values(names.REWARD)[-WINDOW:] or [0.0])
    evidence = f"{percent(fmean(shares))} of the groups of the last {WINDOW} steps, at a mean reward of {reward:.3g}"
    return (
        "Nearly no group carries a gradient",
        evidence,
        "Take harder or easier prompts, more samples a prompt, or a filter.",
    )


def _flat(record: Record) -> Said:
    rewards = record.values(names.REWARD)
    if len(rewards) < FLAT_STEPS:
        return None
    third = len(rewards) // 3
    first, last = rewards[:third], rewards[-third:]
    error = (stdev(first) ** 2 / third + stdev(last) ** 2 / third) ** 0.5
    gain = fmean(last) - fmean(first)
    if gain > max(FLAT_GAIN, error) or gain < -COLLAPSE_BY or fmean(last) >= LEARNED:
        return None
    evidence = f"{fmean(first):.3f} in the first {third} steps, {fmean(last):.3f} in the last, give or take {error:.3f}"
    return "The reward is flat", evidence, "docs/debug.md, 'Reward is flat', has the questions in their order."


def _collapse(record: Record) -> Said:
    rewards = record.values(names.REWARD)
    if len(rewards) < 2 * WINDOW:
        return None
    best = max(fmean(rewards[at : at + WINDOW]) for at in range(len(rewards) - WINDOW + 1))
    last = fmean(rewards[-WINDOW:])
    if last >= COLLAPSE_SHARE * best or best - last < COLLAPSE_BY:
        return None
    evidence = f"{last:.3f} in the last {WINDOW} steps, {best:.3f} in the best {WINDOW}"
    return "The reward has collapsed", evidence, "Go back to an older checkpoint; lower --lr, raise --kl-loss-coef."


def _entropy(record: Record) -> Said:
    entropies = record.values(names.ENTROPY)
    if len(entropies) < 2 * WINDOW:
        return None
    first, last = fmean(entropies[:WINDOW]), fmean(entropies[-WINDOW:])
    learned = fmean(record.values(names.REWARD)[-WINDOW:] or [0.0]) >= LEARNED
    if last >= ENTROPY_SHARE * first or learned:
        return None
    evidence = f"from {first:.3g} to {last:.3g} nats a token, below {percent(ENTROPY_SHARE)} of it"
    return "The policy's entropy has collapsed", evidence, "Raise --eps-clip-high or --entropy-coef, or sample hotter."


def _gap(record: Record) -> Said:
    gaps = record.values(names.LOGPROB_GAP)
    if len(gaps) < 2 * WINDOW:
        return None
    first, last = fmean(gaps[:WINDOW]), fmean(gaps[-WINDOW:])
    if last < GAP_NATS or last < GAP_GROWTH * first:
        return None
    parts = {cause: record.values(name)[-WINDOW:] for cause, name in names.GAPS.items()}
    cause = max(parts, key=lambda name: fmean(parts[name] or [0.0]))
    evidence = f"from {first:.2g} to {last:.2g} nats a token; most of it by {cause}"
    return "Trainer and engines drift apart", evidence, "docs/debug.md, 'Tokens differ', says what each cause means."


def _truncated(record: Record) -> Said:
    shares = record.values(names.TRUNCATED)[-WINDOW:]
    if len(shares) < WINDOW or fmean(shares) <= TRUNCATED_SHARE:
        return None
    evidence = f"{percent(fmean(shares))} of the rollouts of the last {WINDOW} steps, above {percent(TRUNCATED_SHARE)}"
    return (
        "Rollouts are cut",
        evidence,
        "Raise --rollout-max-response-len or the context, or give --overlong-buffer-len.",
    )


def _spikes(record: Record) -> Said:
    norms = [norm for norm in record.values(names.GRAD_NORM) if norm > 0][-SPIKE_WITHIN:]
    if len(norms) < WINDOW or max(norms) <= SPIKE * median(norms):
        return None
    evidence = f"{max(norms):.3g} against a median of {median(norms):.3g} in the last {len(norms)} steps that had one"
    return "The gradient spikes", evidence, "Look at the rollouts of that step; --clip-grad bounds what it does."


def _stale(record: Record) -> Said:
    ages, bounds = record.by_step(names.STALENESS), record.by_step(names.STALENESS_BOUND)
    last = [(age, bounds[step]) for step, age in ages.items() if step in bounds][-WINDOW:]
    if len(last) < WINDOW or any(bound < LEAST_BOUND for _, bound in last):
        return None
    age, bound = (fmean(values) for values in zip(*last, strict=True))
    if age < STALE_SHARE * bound:
        return None
    queued = fmean(record.values(names.STALENESS_QUEUED)[-WINDOW:] or [0.0])
    evidence = (
        f"{age:.2f} weight versions on average in the last {WINDOW} steps, of at most {bound:g}; {queued:.2f} of them "
        "passed while they waited for the trainer"
    )
    return (
        "Tokens are as stale as they may be",
        evidence,
        "The trainer limits: give it more, or lower --max-weight-staleness or --pipeline-depth, at no cost.",
    )


def _disk(record: Record) -> Said:
    free = record.by_step(names.DISK_FREE)
    last = list(free.items())[-DISK_WITHIN:]
    if not last:
        return None
    (first_step, first), (step, left) = last[0], last[-1]
    pace = (first - left) / (step - first_step) if len(last) >= DISK_FEW else 0.0
    if left >= max(DISK_GB, DISK_STEPS * pace):
        return None
    evidence = f"{left:.2f} GB are free where the run writes" + (
        f", {pace:.2f} GB less each step: enough for {left / pace:.0f} more" if pace > 0 else ""
    )
    return "The disk fills up", evidence, "Make room, or save less often (--save-interval) or elsewhere (--save)."


def _restarts(record: Record) -> Said:
    restarts = max(record.values(names.ENGINE_RESTARTS), default=0.0)
    if restarts < RESTARTS:
        return None
    return "Engines keep dying", f"{restarts:.0f} restarts", "logs/ has what each said last; memory is the usual cause."


def _kv_full(record: Record) -> Said:
    looks = looks_at_engines(record)
    if len(looks) < FEW_LOOKS or any(look["kv_use"] / look["engines"] < KV_FULL for look in looks):
        return None
    if not any(look["queued"] or look["preempted"] for look in looks):
        return None
    use = fmean(look["kv_use"] / look["engines"] for look in looks)
    evidence = (
        f"{percent(use)} in use at the last {len(looks)} looks, {looks[-1]['queued']:.0f} requests wait, "
        f"{max(look['preempted'] for look in looks):.0f} had to give their place back"
    )
    return "The engines' KV cache is full", evidence, FEWER


def _queues(record: Record) -> Said:
    looks = looks_at_engines(record)
    if len(looks) < FEW_LOOKS or any(look["queued"] <= max(look["running"], look["engines"]) for look in looks):
        return None
    evidence = f"{looks[-1]['running']:.0f} requests run and {looks[-1]['queued']:.0f} wait, as in {len(looks)} looks"
    return "More requests wait in the engines than run", evidence, FEWER


FEWER = "Run fewer rollouts at once (--rollout-concurrency auto finds how many), or more engines."


def _slow_tools(record: Record) -> Said:
    last = [row for row in of_last_steps(record, WINDOW) if row["tool"] is not None and row["model"] is not None]
    tool, model = sum(row["tool"] for row in last), sum(row["model"] for row in last)
    tools: dict[str, float] = {}
    for name, each in (one for row in last for one in numbers(row["tools"]).items()):
        tools[name] = tools.get(name, 0.0) + each
    slowest, seconds = max(tools.items(), key=itemgetter(1), default=("", 0.0))
    one = len(tools) > 1 and seconds > ONE_TOOL_SHARE * (tool + model)
    if not last or not (one or tool > TOOL_SHARE * (tool + model)):
        return None
    share = percent((seconds if one else tool) / (tool + model))
    evidence = f"{share} of the agents' time in the last {WINDOW} steps: {tool / len(last):.1f} s a rollout"
    evidence += f", {seconds / len(last):.1f} s of {slowest}" if slowest else ""
    return (
        f"Agents wait for {slowest}" if one else "Agents wait for their tools",
        evidence,
        "More agents at once (--agent-concurrency) hide it; engines idle meanwhile.",
    )


def _idle(record: Record) -> Said:
    steps, idle = record.by_step(names.STEP_TIME), record.by_step(names.OVERHEAD_TIME)
    shared = [step for step in steps if step in idle][-WINDOW:]
    whole = sum(steps[step] for step in shared)
    if len(shared) < WINDOW or sum(idle[step] for step in shared) <= IDLE_SHARE * whole:
        return None
    evidence = f"{percent(sum(idle[step] for step in shared) / whole)} of the last {len(shared)} steps' time"
    return (
        "Nothing runs for much of a step",
        evidence,
        "See the step timeline below: updates, saves, or starting rollouts.",
    )


def _drift(record: Record) -> Said:
    compared = record.values(names.MISMATCHED_TEXT)[-WINDOW:]
    last = [numbers(row["forks"]).keys() & UNPRINTABLE for row in of_last_steps(record, WINDOW)]
    shares = fmean(compared or [0.0]), fmean(map(bool, last)) if last else 0.0
    if max(shares) <= DRIFT_SHARE:
        return None
    reasons = ", ".join(sorted({reason for each in last for reason in each}))
    what = "are not what their template prints" if shares[0] >= shares[1] else f"lost their history to it ({reasons})"
    evidence = f"{percent(max(shares))} of the rollouts of the last {WINDOW} steps {what}"
    return (
        "Histories differ from their template",
        evidence,
        "docs/verify.md: prove the template, or name another --tito-model.",
    )


RULES: dict[str, Callable[[Record], Said]] = {
    "nothing_finishes": _nothing_finishes,
    "failures": _failures,
    "reward_collapse": _collapse,
    "no_gradient": _no_gradient,
    "reward_flat": _flat,
    "gap": _gap,
    "entropy_collapse": _entropy,
    "gradient_spike": _spikes,
    "disk_full": _disk,
    "engine_restarts": _restarts,
    "kv_full": _kv_full,
    "queues": _queues,
    "staleness": _stale,
    "truncation": _truncated,
    "template_drift": _drift,
    "slow_tools": _slow_tools,
    "idle": _idle,
}
"""The gravest first."""
