"""Run: one job's processes and files, from connecting to Ray to the summary.

Invariant: whatever ends a run (its last step, an error, Ctrl-C, SIGTERM), nothing it started keeps running, and what it
last saved is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from miles_lite.config.choices import TransferMode
from miles_lite.config.options import Config
from miles_lite.errors import RunLostError, UserError
from miles_lite.job.claim import claimed
from miles_lite.job.precheck import check_inputs
from miles_lite.job.watch import Alarms, OvertimeError, Watch, death_in
from miles_lite.observe.overhead import uncovered
from miles_lite.observe.progress import Progress
from miles_lite.observe.sinks import Sinks, open_sinks
from miles_lite.observe.summary import Counts, Summary, build_summary, write_summary
from miles_lite.observe.terminal import eval_line, step_line
from miles_lite.process.admin_key import known_key
from miles_lite.process.post_mortem import DiedError, obituary, out_of_memory_kills
from miles_lite.process.stopping import DEAF_SECONDS, HASTE_SECONDS, INTERRUPTED, Interrupts, ends_within
from miles_lite.report import metric_names as names
from miles_lite.report.plots import reward_curve
from miles_lite.rollout.manager import Generated, RolloutManager
from miles_lite.stack.actors import named_actor
from miles_lite.stack.cluster import connect, disconnect
from miles_lite.stack.engine_plans import in_words, plan_engines
from miles_lite.stack.environment import actor_env
from miles_lite.stack.fleet import Delivered
from miles_lite.stack.placement import TRAIN_SHARE, Layout, place
from miles_lite.train.advantages import estimate
from miles_lite.train.group import TrainError, TrainGroup
from miles_lite.weights.receiver import WeightUpdate

log = logging.getLogger(__name__)

START_TIMEOUT = 900.0
CALL_TIMEOUT = 600.0
SAVE_TIMEOUT = 4.0
STOP_TIMEOUT = 5.0
END_SECONDS = 25.0
"""How long the end of a run may take in all, with bounds of its own for its parts."""
STALL_MARGIN = 180.0
POLL_SECONDS = 0.5
KEPT_WEIGHTS = 2


class Run:
    """A context manager around one job; its methods are the verbs of `loop.py`, called in that order."""

    def __init__(self, config: Config, *, train: bool = True) -> None:
        self._config = config
        self._train = train
        self._run_dir = config.run_dir
        self._claim = contextlib.ExitStack()
        self._interrupts = Interrupts(deaf=HASTE_SECONDS)
        self._watch = Watch(self._interrupts, hint=f"see {self._run_dir}/logs and Ray's dashboard")
        self._ray_logs: Path | None = None
        self._busy: list[tuple[float, float]] = []
        self._layout: Layout | None = None
        self._manager: Any = None
        self._trainer: TrainGroup | None = None
        self._sinks: Sinks | None = None
        self._progress: Progress | None = None
        self._trained: int | None = None
        self._saved: int | None = None
        self._exporting: tuple[Path, list[ray.ObjectRef]] | None = None
        self._training = False
        self._eval_rollouts = 0
        self.num_rollout = 0

    def __enter__(self) -> Self:
        """Raises UserError for a run folder that cannot be made, or that another run is using."""
        self._claim.enter_context(claimed(self._run_dir))
        self._began = time.time()
        self._seen: dict[str, float] = {}
        self._killed_before = out_of_memory_kills()
        self._interrupts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = self._obituary(error)
        interrupted = isinstance(error, KeyboardInterrupt)
        if not interrupted:
            self._close_sinks()  # takes as long as it takes to send the last metrics
        with ends_within(END_SECONDS, INTERRUPTED if interrupted else 1):
            try:
                if interrupted:
                    self._save_interrupted()
            finally:
                self._stop()
                self._claim.close()
        self._interrupts.__exit__(kind, error, trace)
        if lost is not None:
            raise RunLostError(lost) from error

    # ---- start -------------------------------------------------------------------------------------------------

    def start(self) -> int:
        """Bring everything up. Returns the first rollout id to run. Raises UserError."""
        config = self._config
        check_inputs(config)
        self._interrupts.check()
        self._interrupts.deaf = DEAF_SECONDS
        self._ray_logs = connect(config.cluster.ray_address)
        self._layout = place(config.topology, train=self._train)
        config.write()
        manager = named_actor(RolloutManager, "rollout-manager", num_cpus=0)
        self._manager = manager.remote(config, self._layout, known_key())
        self._watch.follow("the rollout manager", self._manager)
        self._watch.hears.append(Alarms(self._manager, self._say))
        starting = self._manager.start.remote()
        ranks = f", {config.topology.world_size} train rank(s)" if self._train else ""
        engines = in_words(plan_engines(config.topology))
        log.info("%s%s; logs in %s", engines, ranks, self._run_dir / "logs")
        first = self._start_trainer() if self._train else 0
        self._open_log(resumed=first > 0)
        limit = START_TIMEOUT + config.engines.engine_start_timeout
        info = self._watch.wait(starting, "the rollout manager to start its engines", limit)
        self._eval_rollouts = info["eval_rollouts"]
        log.info("router %s, sessions %s, engines %s", info["router_url"], info["session_urls"], info["engine_urls"])
        self.num_rollout = config.rollouts.num_rollout or info["rollouts_per_epoch"] * (config.rollouts.num_epoch or 1)
        if first > 0:
            assert config.checkpoint.load is not None
            self._call("load", config.checkpoint.load, first - 1)
            self._trained = self._saved = first - 1
        self._progress = Progress(steps=self.num_rollout, done=first)
        self._progress.__enter__()
        return first

    def _open_log(self, *, resumed: bool) -> None:
        """A run that starts anew in a used folder keeps the old metrics under another name."""
        metrics = self._run_dir / "metrics.jsonl"
        if metrics.exists() and not resumed:
            metrics.rename(self._run_dir / f"metrics.before-{self._began:.0f}.jsonl")
        self._sinks = open_sinks(self._config.logging, config=self._config.as_dict(), run_dir=self._run_dir)

    def _start_trainer(self) -> int:
        assert self._layout is not None
        options = [self._layout.options(bundle, TRAIN_SHARE) for bundle in self._layout.train_bundles]
        self._trainer = TrainGroup(
            self._config,
            strategies=[option["scheduling_strategy"] for option in options],
            slot_share=TRAIN_SHARE,
            device=self._layout.device,
            run_dir=self._run_dir,
            environment=actor_env(),
            look=self._watch.look,
        )
        self._watch.follow_all("train rank", self._trainer.ranks)
        return self._trainer.start(START_TIMEOUT)

    # ---- the verbs of the loop ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, rollout_id: int) -> Iterator[None]:
        """One turn of the loop; logs how long it took and how much of that nothing useful ran."""
        began = time.time()
        self._busy.clear()
        self._seen.clear()
        yield
        ended = time.time()
        idle = uncovered(began, ended, self._busy)
        self._log({names.STEP_TIME: ended - began, names.OVERHEAD_TIME: idle}, rollout_id, names.ROLLOUT_STEP)
        assert self._progress is not None
        self._progress.step(step_line(rollout_id + 1, total=self.num_rollout, metrics=self._seen))

    def generate(self, rollout_id: int) -> Generated:
        """Roll out and log what was seen, before anything is trained on it."""
        assert self._manager is not None
        assert self._progress is not None
        options = self._config.rollouts
        groups = options.rollout_batch_size
        self._progress.begin("rollout", groups=groups, rollouts=groups * options.n_samples_per_prompt)
        generated: Generated = self._wait_for_rollouts(self._manager.generate.remote(rollout_id), rollout_id)
        self._busy += generated.busy
        self._log(generated.metrics, rollout_id, names.ROLLOUT_STEP)
        return generated

    def train(self, rollout_id: int, generated: Generated) -> None:
        """One training step on a rollout's batches."""
        assert self._trainer is not None
        assert self._progress is not None
        self._progress.begin("train")
        if self._config.updates.offload_rollout:
            self._call("offload")
        began = time.time()
        self._training = True
        metrics = self._trainer.train(rollout_id, *estimate(generated.groups, self._config.algorithm))
        self._training = False
        self._trained = rollout_id
        ended = time.time()
        self._busy.append((began, ended))
        times = {name: value for name, value in metrics.items() if name.startswith("perf/")}
        self._log(times | {names.TRAIN_TIME: ended - began}, rollout_id, names.ROLLOUT_STEP)
        self._log({name: metrics[name] for name in metrics.keys() - times.keys()}, rollout_id, names.TRAIN_STEP)

    def sync(self, version: int) -> None:
        """Bring every engine to the trainer's weights, as `version`; the folder that holds them too is written before
        (mode disk), or while the next rollout runs, for engines that start anew."""
        assert self._trainer is not None
        self._finish_export()
        if self._config.updates.offload_rollout:
            self._call("onload")
        folder = self._run_dir / "weights" / f"v{version}"
        options = self._config.updates
        update = WeightUpdate(str(folder), version, options.pause_generation_mode)
        if options.update_weight_transfer_mode == TransferMode.DISK:
            self._begin_export(folder)
            self._finish_export()
            delivered: Delivered = self._call("update_weights", update)
        else:
            buckets, sender = self._trainer.offer_weights()
            streamed = dataclasses.replace(update, buckets=tuple(buckets))
            delivered = self._call("update_weights", streamed, sender)
            self._trainer.withdraw_weights()
            self._begin_export(folder)
            if delivered.behind:
                log.warning("version %d did not reach %s: loading its folder instead", version, delivered.behind)
                self._finish_export()
                delivered = self._call("update_weights", update)
        if options.check_weight_update_equal:
            self._finish_export()
            self._call("verify_weights")
        self._log({names.UPDATE_WEIGHTS_TIME: delivered.seconds}, max(version - 1, 0), names.ROLLOUT_STEP)

    def _begin_export(self, folder: Path) -> None:
        assert self._trainer is not None
        self._exporting = (folder, self._trainer.begin_export(folder))

    def _finish_export(self) -> None:
        """Wait for the folder that is being written, if any, and remove those before the last two."""
        exporting, self._exporting = self._exporting, None
        if exporting is None:
            return
        assert self._trainer is not None
        folder, calls = exporting
        seconds = self._trainer.finish_export(calls)
        for old in sorted(folder.parent.glob("v*"), key=lambda path: int(path.name[1:]))[:-KEPT_WEIGHTS]:
            shutil.rmtree(old)
        version = int(folder.name[1:])
        self._log({"perf/export_weights_time": seconds}, max(version - 1, 0), names.ROLLOUT_STEP)

    def evaluate(self, version: int) -> None:
        """Run the held-out prompts with the weights of `version`."""
        assert self._progress is not None
        self._progress.begin("eval")
        began = time.time()
        metrics, busy = self._call("eval", timeout=self._eval_timeout())
        self._busy += busy
        metrics["eval/duration_seconds"] = time.time() - began
        self._log(metrics, version, names.EVAL_STEP)
        datasets = self._config.evaluation.datasets
        self._progress.say(eval_line(version, total=self.num_rollout, metrics=metrics, datasets=datasets))

    def save(self, rollout_id: int) -> None:
        """Checkpoint trainer and rollout state of `rollout_id`; then the model folder of --save-hf."""
        assert self._trainer is not None
        assert self._config.checkpoint.save is not None
        self._call("save", self._config.checkpoint.save, rollout_id)
        self._trainer.save(rollout_id)
        self._saved = rollout_id
        self._trainer.save_hf(rollout_id)

    def eval_is_due(self, *, after: int | None = None) -> bool:
        """Before the first step (no `after`), every --eval-interval rollouts, and after the last."""
        options = self._config.evaluation
        if options.eval_interval is None:
            return False
        if after is None:
            return not options.skip_eval_before_train
        return _periodic(after, options.eval_interval, self.num_rollout)

    def save_is_due(self, *, after: int) -> bool:
        options = self._config.checkpoint
        return options.save is not None and _periodic(after, options.save_interval, self.num_rollout)

    def summary(self) -> Summary:
        """Write summary.json and the reward curve; returns the summary."""
        self._finish_export()
        booked = self._call("accounts")
        ends = ("started", "trained", "filtered", "failed", "unused")
        prompts = {f"prompts_{end}": booked[end] for end in ends}
        counts = Counts(**prompts, rollouts_failed=booked["rollouts_failed"])
        metrics = self._run_dir / "metrics.jsonl"
        chance = self._config.logging.reward_chance
        summary = build_summary(
            metrics,
            counts=counts,
            seconds=time.time() - self._began,
            chance=chance,
            heldout=next(iter(self._config.evaluation.datasets), None),
        )
        write_summary(summary, self._run_dir / "summary.json")
        reward_curve(metrics, self._run_dir / "reward.png", chance=chance, title=self._run_dir.name)
        return summary

    # ---- waiting, logging, ending ------------------------------------------------------------------------------

    def _call(self, method: str, *args: Any, timeout: float = CALL_TIMEOUT) -> Any:
        assert self._manager is not None
        call = getattr(self._manager, method).remote(*args)
        return self._watch.wait(call, f"the rollout manager's {method}", timeout)

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.say(line)
        else:
            log.warning("%s", line)

    def _wait_for_rollouts(self, ref: Any, rollout_id: int) -> Generated:
        """Wait for a step, showing progress; gives up when no rollout ends for longer than one may take."""
        assert self._progress is not None
        limit = self._config.rollouts.rollout_timeout + STALL_MARGIN
        before, changed = None, time.monotonic()
        while not self._watch.until(ref, POLL_SECONDS):
            status = self._call("status")
            self._progress.update(groups=status.groups_done, rollouts=status.rollouts_done)
            if status != before:
                before, changed = status, time.monotonic()
            elif time.monotonic() - changed > limit:
                raise UserError(
                    f"rollout {rollout_id}: no agent finished for {limit:.0f} s ({status.rollouts_done} of "
                    f"{status.rollouts_started} did). See {self._run_dir}/logs; --rollout-timeout bounds an agent."
                )
        return self._watch.wait(ref, "the rollout's batches", CALL_TIMEOUT)  # type: ignore[no-any-return]

    def _eval_timeout(self) -> float:
        """As many times --rollout-timeout as agents have to wait for one another, and a margin; seconds."""
        options = self._config.rollouts
        waves = math.ceil(self._eval_rollouts / (options.num_agent_workers * options.agent_concurrency))
        return CALL_TIMEOUT + waves * options.rollout_timeout

    def _log(self, metrics: dict[str, float], step: int, step_key: str) -> None:
        assert self._sinks is not None
        self._seen |= metrics
        self._sinks.log(metrics, step=step, step_key=step_key)

    def _save_interrupted(self) -> None:
        """After Ctrl-C between training steps, save what was trained since the last checkpoint."""
        if self._trained is None or self._trained == self._saved or self._training or not self._config.checkpoint.save:
            return
        print(f"\ninterrupted: saving rollout {self._trained} before stopping", flush=True)
        try:
            with self._watch.at_most(SAVE_TIMEOUT):
                self.save(self._trained)
        except (OvertimeError, DiedError, TrainError) as error:
            why = f"not saved: {error or f'it takes longer than {SAVE_TIMEOUT:.0f} s'}"
            print(f"{why}; the last checkpoint is {self._saved}", flush=True)

    def _obituary(self, error: BaseException | None) -> str | None:
        """What is to be said of the death that ended the run, if one did."""
        if (died := death_in(error)) is None:
            return None
        step = f"Step {1 if self._trained is None else self._trained + 2} of {self.num_rollout or '?'}"
        saved = (self._config.checkpoint.save, self._saved)
        return obituary(died, logs=self._ray_logs, killed_before=self._killed_before, lost=step, saved=saved)

    def _close_sinks(self) -> None:
        sinks, self._sinks = self._sinks, None
        if sinks:
            sinks.close()

    def _stop(self) -> None:
        """End everything; what does not end by itself ends with this process."""
        if self._progress:
            self._progress.__exit__(None, None, None)
        self._close_sinks()
        if self._trainer:
            self._trainer.stop()
        if self._manager and ray.is_initialized():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._manager.stop.remote(), timeout=STOP_TIMEOUT)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._manager)
        if self._layout and ray.is_initialized():
            self._layout.remove()
        disconnect()


def _periodic(rollout_id: int, interval: int | None, total: int) -> bool:
    last = rollout_id == total - 1
    return last or (interval is not None and (rollout_id + 1) % interval == 0)
