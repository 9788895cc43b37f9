"""launchers/monitoring: what its files ask for is exported, Prometheus takes them, and what is started is ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from miles_lite.observe import gauges
from miles_lite.router import gauges as router_gauges
from miles_lite.router.backend import Worker
from miles_lite.router.prometheus import RouterCollector, render
from miles_lite.router.registry import Registry
from miles_lite.session.counters import COUNTERS, GAUGES
from miles_lite.session.http.prometheus import Metrics
from miles_lite.stack.cluster import actors_page
from miles_lite.stack.scraped import FILE, write_targets
from tests.ports import free_port
from tests.waiting import wait_until

FOLDER = Path(__file__).parents[2] / "launchers" / "monitoring"
FUNCTIONS = {"and", "by", "offset", "on"}
OF_PROMETHEUS = {"up": {"job", "instance", "run", "part"}}


@cache
def collectors() -> tuple[RouterCollector, Metrics]:
    """What a router and a session server tell Prometheus."""
    registry = Registry()
    registry.add(Worker("http://one:1"))
    counted = dict.fromkeys([*GAUGES, *COUNTERS], 1.0)
    admission: Any = SimpleNamespace(waiting=0)
    return RouterCollector(registry, admission), Metrics(lambda: counted)


@cache
def exported() -> dict[str, set[str]]:
    """The labels of every metric by its name, as Prometheus has them."""
    found = {f"ray_{name}": {"run"} for name, _ in gauges.GAUGES.values()}
    found |= {f"ray_{gauges.ALARM[0]}": set(gauges.ALARM[2])}
    found |= {f"ray_{name}": set(router_gauges.TAGS) for name, _ in (router_gauges.IN_FLIGHT, router_gauges.READY)}
    router, session = collectors()
    for page in (render(router), session.text()):
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {"run", "part", "instance"}).update(sample.labels)
    return found | OF_PROMETHEUS


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression of Prometheus reads."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on) *\([^)]*\)|\"[^\"]*\"", " ", expression)
    return set(re.findall(r"(?<![\w:])[a-zA-Z_:][\w:]*(?![\w:]* *\()", bare)) - FUNCTIONS


def labels_of(expression: str) -> set[str]:
    grouped = " ".join(re.findall(r"\bby *\(([^)]*)\)", expression))
    return set(re.findall(r"(\w+)=~?\"", expression)) | set(re.findall(r"\w+", grouped))


def panels() -> list[dict[str, Any]]:
    board = json.loads((FOLDER / "dashboards" / "miles_lite.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def asked() -> Iterator[tuple[str, set[str]]]:
    """Each expression, and the labels that its text names."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    for rule in rules():
        yield rule["expr"], set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))


def test_every_metric_and_label_that_is_asked_for_is_exported() -> None:
    for expression, named in asked():
        metrics = metrics_of(expression)
        assert metrics, expression
        assert metrics <= exported().keys(), expression
        assert labels_of(expression) | named <= set.union(*(exported()[name] for name in metrics)), expression
    assert metrics_of("ray_miles_lite_nothing > 1") - exported().keys() == {"ray_miles_lite_nothing"}
    assert metrics_of('sum by (run) (rate(a_total{run="b"}[5m])) / c') == {"a_total", "c"}


def test_every_gauge_of_a_run_is_on_the_dashboard() -> None:
    shown = {name for panel in panels() for target in panel["targets"] for name in metrics_of(target["expr"])}
    assert {name for name in exported() if name.startswith("ray_")} <= shown


def test_panels_are_each_in_a_place_of_their_own() -> None:
    board = json.loads((FOLDER / "dashboards" / "miles_lite.json").read_text())
    boxes = [panel["gridPos"] for panel in board["panels"]]
    cells = [(box["x"] + x, box["y"] + y) for box in boxes for x in range(box["w"]) for y in range(box["h"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert (board["uid"], board["schemaVersion"] >= 36) == ("miles-lite", True)


def test_grafanas_own_classes_know_every_field_of_the_dashboard() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    board = json.loads((FOLDER / "dashboards" / "miles_lite.json").read_text())

    def known(given: object) -> object:
        return json.loads(JSONEncoder().encode(models.Dashboard.from_json(given)))

    assert list(lost(board, known(board))) == []
    misspelt = board | {"panels": [board["panels"][1] | {"gridpos": {}}]}
    assert list(lost(misspelt, known(misspelt))) == [".panels[0].gridpos"]


def lost(given: object, found: object, at: str = "") -> Iterator[str]:
    """Where in `given` something is that is not in `found`."""
    if isinstance(given, dict) and isinstance(found, dict):
        for name, value in given.items():
            yield from lost(value, found.get(name), f"{at}.{name}")
    elif isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        for place, (one, other) in enumerate(zip(given, found, strict=True)):
            yield from lost(one, other, f"{at}[{place}]")
    elif given != found:
        yield at


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not here")
def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    for name in ("ray.json", "run.json"):
        (tmp_path / name).write_text("[]")
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run's folder, with a space in its name."""
    folder = tmp_path / "a run"
    (folder / "logs").mkdir(parents=True)
    return folder


def started(run_dir: Path, path: str, **more: str) -> subprocess.Popen[str]:
    environment = {"PATH": path, "HOME": os.environ["HOME"], **more}
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where a background job runs the tests
    argv = [FOLDER / "start.sh", run_dir]
    return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)


FAKE = """#!/bin/sh
trap 'touch "$TOLD/$(basename "$0").ended"; exit 0' TERM
env >"$TOLD/$(basename "$0").env"
printf '%s\\n' "$@" >"$TOLD/$(basename "$0").argv"
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_are_started_beside_the_run_and_ended(run_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("prometheus", "grafana"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    ray = tmp_path / "ray"
    at, pictures = free_port(), free_port()
    ports = {"PROMETHEUS_PORT": str(at), "GRAFANA_PORT": str(pictures)}
    more = {"TOLD": str(tmp_path), "RAY_SESSION": str(ray)} | ports
    process = started(run_dir, f"{programs}:{os.environ['PATH']}", **more)
    wait_until(lambda: len(list(tmp_path.glob("*.argv"))) == 2, "both to start")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert len(list(tmp_path.glob("*.ended"))) == 2
    data = run_dir / "monitoring"
    assert (tmp_path / "prometheus.argv").read_text().splitlines() == [
        f"--config.file={data / 'prometheus.yml'}",
        f"--storage.tsdb.path={data / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{at}",
    ]
    told = dict(line.split("=", 1) for line in (tmp_path / "grafana.env").read_text().splitlines() if "=" in line)
    assert told["GF_PATHS_PROVISIONING"] == str(FOLDER / "provisioning")
    assert (told["GF_SERVER_HTTP_ADDR"], told["PROMETHEUS_URL"]) == ("127.0.0.1", f"http://127.0.0.1:{at}")
    assert (Path(told["DASHBOARDS"]) / "miles_lite.json").is_file()
    assert (data / "ray.json").readlink() == ray / "prom_metrics_service_discovery.json"
    assert (data / "run.json").readlink() == run_dir / FILE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "monitoring/start.sh runs/latest"), (["none"], "no such folder"), (["a", "b"], "not 2")],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str) -> None:
    done = subprocess.run([FOLDER / "start.sh", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode > 0
    assert said in done.stderr


def test_a_port_that_is_none_or_is_in_use_is_named_and_nothing_is_written(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prometheus").symlink_to("/bin/true")
    path = f"{tmp_path}:{os.environ['PATH']}"
    for given in ("abc", "0", "65536"):
        assert f"PROMETHEUS_PORT={given}: expected a port" in refused(run_dir, path, PROMETHEUS_PORT=given)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(run_dir, path, PROMETHEUS_PORT=str(free_port()), GRAFANA_PORT=str(port))
    assert f"port {port} is in use" in said
    assert "or set GRAFANA_PORT" in said
    assert not (run_dir / "monitoring").exists()


def refused(run_dir: Path, path: str, **more: str) -> str:
    process = started(run_dir, path, **more)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    return said


def test_who_has_no_prometheus_is_told(run_dir: Path, tmp_path: Path) -> None:
    for name in ("bash", "env", "dirname", "sed"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    process = started(run_dir, str(tmp_path))
    assert "prometheus is not on PATH" in process.communicate(timeout=60)[1]
    assert not (run_dir / "monitoring").exists()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not here")
def test_prometheus_scrapes_the_routers_and_sessions_of_a_run(run_dir: Path) -> None:
    with contextlib.ExitStack() as ending:
        urls = [ending.enter_context(listening(collector)) for collector in collectors()]
        write_targets(run_dir, routers=urls[:1], sessions=urls[1:])
        port = free_port()
        process = started(run_dir, os.environ["PATH"], PROMETHEUS_PORT=str(port), RAY_SESSION=str(run_dir / "no-ray"))
        try:
            wait_until(lambda: query(port, "count(up == 1)") == ["2"], "both to be scraped")
            assert query(port, 'sum(router_worker_state{state="ready",run="a run",part="router"})') == ["1"]
            assert query(port, 'miles_lite_session_turns_total{part="session"}') == ["1"]
        finally:
            process.terminate()
            process.wait(30)


class RayPage(Collector):
    """What a node of Ray serves of a run: the gauges of the driver and of a router."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, labels in exported().items():
            if name.startswith("ray_"):
                family = GaugeMetricFamily(name, "of a run", labels=sorted(labels))
                family.add_metric([f"a {label}" for label in sorted(labels)], 1.0)
                yield family


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not here")
def test_every_panel_shows_something_and_every_rule_is_one_to_prometheus(run_dir: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as ending:
        of_router, of_sessions = collectors()
        router = ending.enter_context(listening(of_router))
        sessions = ending.enter_context(listening(of_sessions, of_sessions.turn_seconds))
        ray_node = ending.enter_context(listening(RayPage()))
        write_targets(run_dir, routers=[router], sessions=[sessions])
        session = tmp_path / "ray"
        session.mkdir()
        node = [{"targets": [ray_node.removeprefix("http://")]}]
        (session / "prom_metrics_service_discovery.json").write_text(json.dumps(node))
        port = free_port()
        process = started(run_dir, os.environ["PATH"], PROMETHEUS_PORT=str(port), RAY_SESSION=str(session))
        try:
            wait_until(lambda: query(port, "min(count_over_time(up[1m])) >= 3") != [], "rates to be known", seconds=90)
            for panel in panels():
                for target in panel["targets"]:
                    expression = target["expr"].replace("$run", ".*")
                    assert query(port, expression), (panel["title"], expression)
            for rule in rules():
                assert told(port, "query", query=rule["expr"])["status"] == "success", rule["alert"]
            runs = told(port, "label/run/values", **{"match[]": "ray_miles_lite_rollout_step"})
            assert runs["data"] == ["a run"]
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not here")
def test_rays_dashboard_finds_prometheus_which_has_the_gauges_of_a_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    context: Any = ray.init(address="local", num_cpus=1, log_to_driver=False)
    process = None
    try:
        session = context.address_info["session_dir"]
        process = started(run_dir, os.environ["PATH"], PROMETHEUS_PORT=str(port), RAY_SESSION=session)
        shown = gauges.Gauges("a-run")

        def scraped() -> bool:
            shown.log({"rollout/reward_unfiltered": 0.75}, step=2, step_key="rollout/step")
            return query(port, 'ray_miles_lite_reward{run="a-run"}') == ["0.75"]

        wait_until(scraped, "the reward to be scraped", seconds=120)
        with urllib.request.urlopen(f"http://{context.dashboard_url}/api/prometheus_health", timeout=30) as answer:
            assert json.load(answer)["result"] is True
        assert actors_page() == f"http://{context.dashboard_url}/#/actors"
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        ray.shutdown()


@contextlib.contextmanager
def listening(*served: Collector) -> Iterator[str]:
    """The URL below which Prometheus finds them."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in served:
        registry.register(collector)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def told(port: int, of: str, **asked: str) -> dict[str, Any]:
    """What Prometheus answers. Raises OSError while it is not there, and for what it does not understand."""
    address = f"http://127.0.0.1:{port}/api/v1/{of}?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def query(port: int, expression: str) -> list[str]:
    """The values that Prometheus has of it; none while it is not there."""
    try:
        return [each["value"][1] for each in told(port, "query", query=expression)["data"]["result"]]
    except OSError:
        return []
