"""What serves a model, as options: the groups that every command has that starts engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from miles_lite.config import rules
from miles_lite.config.engines import Engines, RouterAddress, Routing
from miles_lite.config.model import Context, Model, Seed
from miles_lite.config.partners import ROLLED_OUT
from miles_lite.config.places import Cluster, Hosts, RunFolder, Topology
from miles_lite.config.session_options import Session, SessionServers
from miles_lite.config.tracking import Tracing


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Engines, router and session servers of one model."""

    topology: Topology = field(default_factory=Topology)
    hosts: Hosts = field(default_factory=Hosts)
    model: Model
    context: Context = field(default_factory=Context)
    seeding: Seed = field(default_factory=Seed)
    session_servers: SessionServers = field(default_factory=SessionServers, metadata=ROLLED_OUT)
    session: Session = field(default_factory=Session)
    routing: Routing = field(default_factory=Routing, metadata=ROLLED_OUT)
    router_address: RouterAddress = field(default_factory=RouterAddress, metadata=ROLLED_OUT)
    engines: Engines = field(default_factory=Engines, metadata=ROLLED_OUT)
    tracing: Tracing = field(default_factory=Tracing, metadata=ROLLED_OUT)
    run: RunFolder = field(default_factory=RunFolder)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def run_dir(self) -> Path:
        return self.run.path

    def contradictions(self) -> rules.Rules:
        """All rules between these options."""
        return rules.engines(self.topology, self.routing, self.router_address, self.session_servers)

    def check(self) -> Self:
        """Refuse contradictions; returns self. Raises UserError naming the flags."""
        rules.refuse_broken(self.contradictions())
        return self
