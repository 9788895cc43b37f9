"""`miles-lite verify template | session`.

Invariant: the last line is a verdict, and the exit code agrees with it: 0 for PASS, 1 for FAIL; 2 is bad input.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.errors import UserError

USAGE = """usage: miles-lite verify template (--template FILE.jinja [--tokenizer DIR] | --model DIR) [flags]
       miles-lite verify session --hf-checkpoint DIR [--session-url URL] [flags]

  template     can a chat template be appended to? CPU, seconds
  session      do sessions on live engines keep every token?
"""


def main(argv: Sequence[str]) -> int:
    """Run the named verification; the exit code. Raises UserError."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if name == "template":
        from miles_lite.commands.verify_template import main as template

        return template(rest)
    if name == "session":
        from miles_lite.commands.verify_session import main as session

        return session(rest)
    raise UserError(f"miles-lite verify: give template or session\n{USAGE}".rstrip())
