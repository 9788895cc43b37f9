"""The headline metrics as Ray gauges: they show in the Ray dashboard and in the Prometheus endpoint of each node.

Ray puts `ray_` before the names. Needs a started Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from miles_lite.report import metric_names as names

GAUGES: dict[str, tuple[str, str]] = {
    names.ROLLOUT_STEP: ("miles_lite_rollout_step", "The rollout that was logged last"),
    names.REWARD: ("miles_lite_reward", "Mean reward of a rollout, before filtering"),
    names.RESPONSE_LEN: ("miles_lite_response_len", "Mean trained tokens per rollout"),
    names.ZERO_STD: ("miles_lite_zero_std_ratio", "Share of groups whose rewards are all equal"),
    names.TRUNCATED: ("miles_lite_truncated_ratio", "Share of rollouts that were cut"),
    names.FAILED: ("miles_lite_failed_ratio", "Share of rollouts that failed"),
    names.WEIGHT_VERSION: ("miles_lite_weight_version", "The oldest weight version that sampled a rollout"),
    names.LOGPROB_GAP: ("miles_lite_logprob_gap", "Mean |trainer logprob - engine logprob|"),
    names.STEP_TIME: ("miles_lite_step_seconds", "Wall time of a step"),
    names.OVERHEAD_TIME: ("miles_lite_overhead_seconds", "Seconds of a step in which nothing useful ran"),
}
ALARM = "miles_lite_alarm", "1 while a rule sees what it is there for, 0 once it has", ("run", "rule")


class Gauges:
    """One gauge per entry of GAUGES, and one for the alarms of all rules, tagged with the run's name."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            name: Gauge(label, description=text, tag_keys=("run",)) for name, (label, text) in GAUGES.items()
        }
        name, text, tags = ALARM
        self._alarm = Gauge(name, description=text, tag_keys=tags)
        for gauge in (*self._gauges.values(), self._alarm):
            gauge.set_default_tags({"run": run})

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        """Set the gauges of those metrics that have one."""
        for name, value in {**metrics, step_key: float(step)}.items():
            if name in self._gauges:
                self._gauges[name].set(value)
            elif name.startswith(names.ALARMS):
                self._alarm.set(value, {"rule": name.removeprefix(names.ALARMS)})

    def close(self) -> None:
        """Ray forgets a gauge with the process that set it."""
