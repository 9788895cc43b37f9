"""A run that stands: the verbs of `loop.py`, and how one comes to be.

Invariant: each part is there from before the first verb until after the last; `rolling_out` and `training` say in which
order they start, and `Lifetime` ends them in the reverse one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from ray import ObjectRef

from miles_lite.config.options import Config
from miles_lite.job.due import Due
from miles_lite.job.interrupted import sum_up_when_interrupted
from miles_lite.job.lifetime import Lifetime
from miles_lite.job.log import Log, open_log
from miles_lite.job.servers import Servers, StartingServers
from miles_lite.job.trainer import Trainer, start_ranks
from miles_lite.observe.summary import Counts, Summary, build_summary, write_summary
from miles_lite.observe.terminal import eval_line, failures_line, gap_line
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.report.record import METRICS, SUMMARY
from miles_lite.rollout.answers import Evaluated, Generated
from miles_lite.rollout.manager import RolloutManager
from miles_lite.stack.engine_plans import describe_plans, plan_engines
from miles_lite.stack.placement import Layout

log = logging.getLogger(__name__)


class Run:
    """What rolls out and logs it."""

    def __init__(self, config: Config, life: Lifetime, servers: Servers, logged: Log, *, num_rollout: int) -> None:
        self._config, self._life, self._servers, self._log = config, life, servers, logged
        self.num_rollout = num_rollout

    @contextlib.contextmanager
    def step(self, rollout_id: int) -> Iterator[None]:
        """One turn of the loop."""
        with self._log.step(rollout_id):
            yield
            if self._config.scheduling.overlaps:  # agents go on while the trainer trains, for steps to come
                self._log.busy(*self._servers.call(RolloutManager.busy), agents=True)
        self._life.reached.trained = rollout_id

    def generate(self, rollout_id: int) -> Generated:
        """Roll out and log what was seen, before anything is trained on it."""
        options = self._config.rollouts
        groups = options.rollout_batch_size
        self._log.progress.begin("rollout", groups=groups, rollouts=groups * options.n_samples_per_prompt)
        generated = self._servers.generate(rollout_id, self._log.progress)
        self._log.busy(*generated.busy, agents=True)
        self._log.metrics(generated.metrics, rollout_id, names.ROLLOUT_STEP)
        if failed := failures_line(generated.metrics):
            self._log.event(Kind.FAILURES, failed, step=rollout_id)
        if (pattern := self._config.debugging.save_debug_rollout_data) is not None:
            from miles_lite.rollout import dump  # torch, which a driver else has not

            dump.write(dump.path_of(pattern, rollout_id), rollout_id, generated.groups)
        return generated


class TrainingRun(Run):
    """What trains on it too. `first` is the rollout it begins with."""

    def __init__(
        self, config: Config, life: Lifetime, servers: Servers, trainer: Trainer, logged: Log, *, first: int, due: Due
    ) -> None:
        super().__init__(config, life, servers, logged, num_rollout=due.num_rollout)
        self._trainer = trainer
        self._evaluating: tuple[int, ObjectRef[Evaluated]] | None = None
        self.first, self.due = first, due

    def train(self, rollout_id: int, generated: Generated) -> None:
        """One training step on what was rolled out."""
        self._log.progress.begin("train")
        metrics, (began, ended) = self._trainer.train(rollout_id, generated.groups, kept=generated.kept)
        self._log.busy((began, ended))
        times = {name: value for name, value in metrics.items() if name.startswith("perf/")}
        self._log.metrics(times | {names.TRAIN_TIME: ended - began}, rollout_id, names.ROLLOUT_STEP)
        rest = {name: metrics[name] for name in metrics.keys() - times.keys()}
        self._log.metrics(rest, rollout_id, names.TRAIN_STEP)
        if rollout_id == self.first and (warning := gap_line(rest)) is not None:
            self._log.progress.print_line(warning)

    def sync(self, version: int) -> None:
        """Bring every engine to the trainer's weights, as `version`; what is evaluated with those before ends first."""
        self._finish_evaluation()
        seconds = self._trainer.sync(version)
        step = max(version - 1, 0)
        self._log.metrics({names.UPDATE_WEIGHTS_TIME: seconds}, step, names.ROLLOUT_STEP)
        self._log.event(Kind.WEIGHTS, "all engines serve it", step=step, what=f"v{version}", seconds=seconds)

    def save(self, rollout_id: int) -> None:
        """Begin to write the checkpoint of `rollout_id`; what is written meanwhile costs no step anything."""
        began = time.time()
        self._trainer.save(rollout_id)
        seconds = time.time() - began
        self._log.metrics({"perf/save_model_time": seconds}, rollout_id, names.ROLLOUT_STEP)
        self._log.event(Kind.SAVE, str(self._config.checkpoint.save), step=rollout_id, seconds=seconds)

    def evaluate(self, version: int) -> None:
        """Run the held-out prompts with the weights of `version`, unless an earlier attempt did with the same. Where
        rollouts run ahead of the trainer, the next step trains meanwhile."""
        evaluated = self._life.reached.evaluated
        if version == self.first and evaluated is not None and evaluated >= version:
            return
        self._log.progress.begin("eval")
        self._evaluating = (version, self._servers.begin_evaluation())
        if not self._config.scheduling.overlaps:
            self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        """Wait for what is evaluated, if anything is, and log it."""
        evaluating, self._evaluating = self._evaluating, None
        if evaluating is None:
            return
        version, ref = evaluating
        metrics, busy = self._servers.finish_evaluation(ref)
        self._log.busy(*busy, agents=True)
        self._log.metrics(metrics, version, names.EVAL_STEP)
        self._life.reached.evaluated = version
        datasets = self._config.evaluation.datasets
        line = eval_line(version, total=self.num_rollout, metrics=metrics, datasets=datasets)
        self._log.progress.print_line(line)
        self._log.event(Kind.EVALUATION, line, step=max(version - 1, 0), what=f"v{version}")

    def summary(self) -> Summary:
        """Write summary.json and the reward curve; returns the summary."""
        self._finish_evaluation()
        self._trainer.finish_export()
        self._trainer.finish_save()
        summary = save_summary(self._config, self._life, self._servers)
        run_dir, chance = self._config.run_dir, self._config.logging.reward_chance
        from miles_lite.report.plots import reward_curve  # matplotlib takes a second, which no start has to wait for

        reward_curve(run_dir / METRICS, run_dir / "reward.png", chance=chance, title=run_dir.name)
        return summary


def save_summary(config: Config, life: Lifetime, servers: Servers, *, ended: str = "well") -> Summary:
    """Write summary.json; what is under way, of a run that does not end well, is used by nobody."""
    booked = servers.call(RolloutManager.accounts)
    summary = build_summary(
        config.run_dir / METRICS,
        counts=Counts(
            prompts_started=booked.started,
            prompts_trained=booked.trained,
            prompts_filtered=booked.filtered,
            prompts_failed=booked.failed,
            prompts_quarantined=booked.quarantined,
            prompts_unused=booked.unused + booked.in_flight,
            rollouts_failed=booked.rollouts_failed,
        ),
        ended=ended,
        seconds=time.time() - life.course.began,
        restarts=life.course.restarts,
        chance=config.logging.reward_chance,
        heldout=next(iter(config.evaluation.datasets), None),
    )
    write_summary(summary, config.run_dir / SUMMARY)
    return summary


def rolling_out(config: Config, life: Lifetime) -> Run:
    """A run that does not train. Raises UserError."""
    starting = _begin(config, life, life.connect(config.topology, train=False))
    sinks = open_log(config, life, resumed=False)
    servers = starting.started()
    total = _total(config, servers)
    logged = Log(life, sinks, config, steps=total, done=0)
    life.mark_ready(first=0, of=total)
    return Run(config, life, servers, logged, num_rollout=total)


def training(config: Config, life: Lifetime) -> TrainingRun:
    """A run that trains. Raises UserError."""
    layout = life.connect(config.topology, train=True)
    starting = _begin(config, life, layout, f", {config.topology.world_size} train rank(s)")
    ranks, first = start_ranks(config, life, layout)
    sinks = open_log(config, life, resumed=first > 0)
    servers = starting.started()
    total = _total(config, servers)
    if first > 0 and config.checkpoint.load is not None:
        servers.call(RolloutManager.load, config.checkpoint.load, first - 1)
    logged = Log(life, sinks, config, steps=total, done=first)
    life.mark_ready(first=first, of=total)

    sum_up_when_interrupted(life, lambda: save_summary(config, life, servers, ended="interrupted"))

    def exported(version: int, seconds: float) -> None:
        logged.metrics({"perf/export_weights_time": seconds}, max(version - 1, 0), names.ROLLOUT_STEP)

    trainer = Trainer(config, life, ranks, servers, exported)
    return TrainingRun(config, life, servers, trainer, logged, first=first, due=Due(config, total))


def _begin(config: Config, life: Lifetime, layout: Layout, ranks: str = "") -> StartingServers:
    starting = StartingServers(config, life, layout)
    engines = describe_plans(plan_engines(config.topology))
    log.info("%s%s; logs in %s", engines, ranks, config.run_dir / "logs")
    return starting


def _total(config: Config, servers: Servers) -> int:
    """How many rollouts there are to be."""
    options = config.rollouts
    return options.num_rollout or servers.started.rollouts_per_epoch * (options.num_epoch or 1)
