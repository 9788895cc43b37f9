"""What the agent is told and shown. Tokens are CPU time, so every text is as short as it can be.

Invariant: transcripts (the warm start) and the agent (the rollouts) take their texts from here, so they cannot differ.
"""

from __future__ import annotations

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
SYSTEM = f"Fix the bug. Reply with a THOUGHT and one bash block. When done: {SUBMIT}"
INSTANCE = "{{task}}"
OBSERVATION = "exit {{output.returncode}}\n{{output.output}}"
FORMAT_ERROR = "One bash block, please."
ACTION_REGEX = r"```bash\s*\n(.*?)\n```"


def reply(thought: str, command: str) -> str:
    """An assistant message in the form that `ACTION_REGEX` reads."""
    return f"THOUGHT: {thought}\n```bash\n{command}\n```"


def observation(output: str, returncode: int = 0) -> str:
    """What `OBSERVATION` renders to for a command that was not stopped."""
    return f"exit {returncode}\n{output}"
