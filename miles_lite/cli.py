"""The command line: `miles-lite COMMAND`; see `COMMANDS`.

Invariant: what a user can mend is one clear message on stderr and exit code 2; a run that lost one of its processes is
one message and 1; Ctrl-C is 130; everything else keeps its traceback. Heavy imports happen only in the command that
needs them.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence

from miles_lite.errors import RunLostError, UserError, disk_is_full, plain
from miles_lite.process.stopping import HASTE_SECONDS, INTERRUPTED, SIGNALS, Interrupts
from miles_lite.process.uncollected import uncollected

COMMANDS = {
    "train": "the main job: rollouts, training, weights back; see `miles-lite train --help`",
    "rollout": "generate and score without training (same flags)",
    "train-async": "train with rollouts a step ahead of the trainer: --max-weight-staleness 1 (same flags)",
    "serve": "engines, router and session servers, until Ctrl-C",
    "router": "the router alone",
    "session": "a session server alone, in front of a router that runs",
    "sandboxes": "what agents' commands run in, for other machines: folders or containers of this one",
    "agent": "talk to a model that uses tools",
    "data": "look at prompt files: rows, lengths, duplicates, labels",
    "status": "where a run stands, from another shell",
    "tail": "a run's steps and events as they come",
    "show": "one rollout of a run, with its trajectory in colours",
    "replay": "go on from a turn of a recorded rollout, with the run's weights",
    "report": "one page that tells what a run did, alarms first",
    "dash": "the runs of a folder in a browser, live",
    "traces": "look at trajectory files; make datasets of them",
    "simulate": "how fast a fleet would be: engines, staleness, concurrency; no GPU, no Ray",
    "verify": "prove a chat template, or sessions on live engines; see `miles-lite verify --help`",
    "migrate": "a launcher of miles or slime as one of ours: what maps to what, what is left to do by hand",
    "init-model": "make a small Qwen3-architecture model and tokenizer, no download",
}
"""Each is a module of `commands` with a `main(argv)` that returns the exit code, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: miles-lite COMMAND [flags]\n")
        for name, does in COMMANDS.items():
            print(f"  {name:12s} {does}")
        return 0 if arguments else 2
    name, rest = arguments[0].replace("_", "-"), arguments[1:]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    try:
        if name not in COMMANDS:
            raise UserError(f"miles-lite: no command '{name}'; there are {', '.join(COMMANDS)}")
        return _command(name)(rest)
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


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """Its main. What it imports takes seconds, and answers Ctrl-C."""
    with Interrupts(deaf=HASTE_SECONDS), uncollected():
        module = importlib.import_module(f"miles_lite.commands.{name.replace('-', '_')}")
    main: Callable[[Sequence[str]], int] = module.main
    return main
