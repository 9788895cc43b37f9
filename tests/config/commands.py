"""The options of every command, one class each."""

from __future__ import annotations

from miles_lite.commands import (
    agent,
    dash,
    init_model,
    migrate,
    replay,
    report,
    router,
    sandboxes,
    session,
    show,
    simulate,
    status,
    tail,
    traces,
    verify_session,
    verify_template,
)
from miles_lite.commands.data.look import Look
from miles_lite.config.options import Config
from miles_lite.config.serving import Serving

COMMANDS = (
    Config,
    Serving,
    agent.AgentCommand,
    init_model.InitModel,
    router.RouterOptions,
    sandboxes.SandboxOptions,
    session.SessionOptions,
    verify_session.Options,
    verify_template.TemplateOptions,
    simulate.Simulate,
    traces.ToData,
    migrate.Migrate,
    status.Status,
    tail.Tail,
    show.Show,
    replay.Replay,
    report.Report,
    dash.Dash,
    Look,
)
