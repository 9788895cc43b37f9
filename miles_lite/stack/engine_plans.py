"""Which engines a run has: alike, prefill and decode, as a YAML file says, or servers that somebody else runs.

Invariant: the plans of engines that are started fill the slots of --rollout-num-gpus exactly, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from miles_lite.config.choices import WorkerType
from miles_lite.config.engines import Engines
from miles_lite.config.places import Topology
from miles_lite.config.yaml_text import read_yaml
from miles_lite.engine.sglang_flags import check_options, known_options, refuse_decided
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping
from miles_lite.router.registration import parse_url


@dataclass(frozen=True)
class _Described:
    """Slots that go to one engine. role None: they only stay free."""

    role: WorkerType | None
    slots: int
    overrides: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class EnginePlan:
    """One engine: its role, its slots (GPUs), the first of them, over how many nodes they are, its own SGLang options;
    or the URL where it runs, and then its slots mean nothing."""

    index: int
    role: WorkerType
    slots: int
    first_slot: int
    nodes: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    external_url: str | None = None

    def on_node(self, rank: int) -> slice:
        """Its slots on the node with that rank, among those of all engines."""
        size = self.slots // self.nodes
        return slice(self.first_slot + rank * size, self.first_slot + (rank + 1) * size)


def plan_engines(topology: Topology) -> tuple[EnginePlan, ...]:
    """Engines of a run, by index. Raises UserError for a layout that does not fit."""
    external = topology.rollout_external_engine_addrs
    if external:
        _refuse_both(topology, "--rollout-external-engine-addrs")
        urls = [parse_url(url if "://" in url else f"http://{url}") for url in external]
        return tuple(EnginePlan(index, WorkerType.REGULAR, 1, 0, external_url=url) for index, url in enumerate(urls))
    if topology.sglang_config:
        if topology.prefill_num_servers:
            raise UserError("--sglang-config names prefill and decode groups itself: leave out --prefill-num-servers")
        return _number(_read(Path(topology.sglang_config), topology), topology)
    count, size, prefill = topology.num_engines, topology.rollout_num_gpus_per_engine, topology.prefill_num_servers
    others = WorkerType.DECODE if prefill else WorkerType.REGULAR
    roles = [WorkerType.PREFILL] * prefill + [others] * (count - prefill)
    return _number([_Described(role, size) for role in roles], topology)


def check_engines(topology: Topology, engines: Engines) -> None:
    """Raises UserError for a layout that does not fit, and for an SGLang option that does not exist or that contradicts
    one of ours."""
    for options in (engines.sglang_args, *(plan.overrides for plan in plan_engines(topology))):
        check_options(options, known_options())
        refuse_decided(options, known_options())


def describe_plans(plans: Sequence[EnginePlan]) -> str:
    """What becomes of them at the start of a run, for its log."""
    joined = sum(plan.external_url is not None for plan in plans)
    return f"joining {joined} engine(s) that run already" if joined else f"starting {len(plans)} engine(s)"


def _refuse_both(topology: Topology, flag: str) -> None:
    others = {"--prefill-num-servers": topology.prefill_num_servers, "--sglang-config": topology.sglang_config}
    for other, given in others.items():
        if given:
            raise UserError(f"{flag} and {other} exclude each other")


def _number(described: Sequence[_Described], topology: Topology) -> tuple[EnginePlan, ...]:
    plans: list[EnginePlan] = []
    first, per_node = 0, topology.num_gpus_per_node
    for each in described:
        nodes = -(-each.slots // per_node)
        if nodes > 1 and each.slots % per_node:
            raise UserError(
                f"an engine of {each.slots} GPUs fills its nodes: --num-gpus-per-node {per_node} must divide it"
            )
        if each.role is not None:
            plans.append(EnginePlan(len(plans), each.role, each.slots, first, nodes, each.overrides))
        first += each.slots
    return tuple(plans)


def _read(path: Path, topology: Topology) -> list[_Described]:
    """The engines of a file `sglang: [{server_groups: [{worker_type, num_gpus, num_gpus_per_engine, overrides}]}]`."""
    with user_error(f"--sglang-config {path}", OSError, UnicodeError, RecursionError, yaml.YAMLError):
        document = read_yaml(path.read_text(encoding="utf-8"))
    described = list(_engines(document, where=f"--sglang-config {path}", size=topology.rollout_num_gpus_per_engine))
    slots = sum(each.slots for each in described)
    if slots != topology.rollout_slots:
        raise UserError(
            f"--sglang-config {path}: its groups have {slots} GPUs, --rollout-num-gpus gives {topology.rollout_slots}"
        )
    if all(each.role is None for each in described):
        raise UserError(f"--sglang-config {path}: no group has an engine")
    return described


def _engines(document: object, *, where: str, size: int) -> Iterator[_Described]:
    models = document.get("sglang") if isinstance(document, dict) else None
    if isinstance(models, list) and len(models) > 1:
        raise UserError(
            f"{where}: `sglang:` has {len(models)} entries, and one model is served. A teacher is a folder that train "
            "ranks run, or a server of your own: --opd-teacher FOLDER, or URL (see `miles-lite serve`)"
        )
    if not isinstance(models, list) or len(models) != 1 or not isinstance(models[0], dict):
        raise UserError(f"{where}: expected `sglang:` with one entry; one model is served")
    model = models[0]
    groups = model.get("server_groups", model.get("engine_groups"))
    if not isinstance(groups, list) or not groups:
        raise UserError(f"{where}: expected a list `server_groups`")
    for at, group in enumerate(groups):
        here = f"{where}, server_groups[{at}]"
        if not isinstance(group, dict):
            raise UserError(f"{here}: expected an object with worker_type and num_gpus")
        yield from _group(group, where=here, size=model.get("num_gpus_per_engine", size))


def _group(group: JsonMapping, *, where: str, size: object) -> list[_Described]:
    """The engines of one of `server_groups`."""
    unknown = set(group) - {"worker_type", "num_gpus", "num_gpus_per_engine", "overrides"}
    if unknown:
        raise UserError(f"{where}: unknown keys {', '.join(sorted(map(str, unknown)))}")
    roles: dict[str, WorkerType | None] = {**{role.value: role for role in WorkerType}, "placeholder": None}
    role = group.get("worker_type", "regular")
    if role not in roles:
        raise UserError(f"{where}: worker_type {role!r}: regular, prefill, decode and placeholder exist")
    each, total = group.get("num_gpus_per_engine", size), group.get("num_gpus")
    if type(total) is not int or type(each) is not int or each < 1 or total < 1 or total % each:
        raise UserError(f"{where}: num_gpus {total!r} must be a multiple of num_gpus_per_engine {each!r}")
    overrides = group.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise UserError(f"{where}: overrides must be an object of SGLang options")
    named = {str(name).replace("-", "_"): value for name, value in overrides.items()}
    return [_Described(roles[role], each, named)] * (total // each)
