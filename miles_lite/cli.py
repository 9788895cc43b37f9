"""The command line: `miles-lite train | rollout | serve | router | session | agent | traces | verify | init-model`.

Invariant: what a user can mend is one clear message on stderr and exit code 2; a run that lost one of its processes is
one message and 1; Ctrl-C is 130; everything else keeps its traceback. Heavy imports happen only in the command that
needs them.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence

from miles_lite.errors import RunLostError, UserError, disk_is_full, plain
from miles_lite.process.stopping import HASTE_SECONDS, INTERRUPTED, SIGNALS, Interrupts

USAGE = """usage: miles-lite COMMAND [flags]

  train        the main job: rollouts, training, weights back; see `miles-lite train --help`
  rollout      generate and score without training (same flags)
  serve        engines, router and session servers, until Ctrl-C
  router       the router alone
  session      a session server alone, in front of a router that runs
  agent        talk to a model that uses tools
  traces       look at trajectory files; make datasets of them
  verify       prove a chat template, or sessions on live engines; see `miles-lite verify --help`
  init-model   make a small Qwen3-architecture model and tokenizer, no download
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    try:
        command = COMMANDS.get(name)
        if command is None:
            raise UserError(f"miles-lite: no command '{name}'; there are {', '.join(COMMANDS)}")
        return command(rest)
    except KeyboardInterrupt:
        for number in SIGNALS:  # once is enough
            signal.signal(number, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except RunLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not isinstance(error, UserError) and not disk_is_full(error):
            raise
        full = "" if isinstance(error, UserError) else "the disk is full: "
        print(f"error: {full}{plain(error)}", file=sys.stderr)
        return 2


def _train(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.config.options import parse
        from miles_lite.job.loop import train
        from miles_lite.observe.summary import print_summary

    config, leftovers = parse(argv)
    leftovers.show_ignored()
    if config.algorithm.loss_type == "sft_loss":
        from miles_lite.job.sft import imitate

        print(f"model: {imitate(config)}")
        return 0
    summary = train(config)
    print_summary(summary, run_dir=config.run_dir, png=config.run_dir / "reward.png")
    return 0


def _rollout(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.config.options import parse
        from miles_lite.job.loop import rollout

    config, leftovers = parse(argv, prog="miles-lite rollout")
    leftovers.show_ignored()
    metrics = rollout(config)
    for name in sorted(metrics):
        print(f"{name:50s} {metrics[name]:.4g}")
    print(f"metrics: {config.run_dir / 'metrics.jsonl'}")
    return 0


def _serve(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.serve import serve

    return serve(argv)


def _router(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.serve import router

    return router(argv)


def _session(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.session import main as session

    return session(argv)


def _agent(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.agent import main as agent

    return agent(argv)


def _traces(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.traces import main as traces

    return traces(argv)


def _init_model(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.init_model import main as make_model

    return make_model(argv)


def _verify(argv: Sequence[str]) -> int:
    with Interrupts(deaf=HASTE_SECONDS):
        from miles_lite.commands.verify import main as verify

    return verify(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "rollout": _rollout,
    "serve": _serve,
    "router": _router,
    "session": _session,
    "agent": _agent,
    "traces": _traces,
    "verify": _verify,
    "init-model": _init_model,
}
