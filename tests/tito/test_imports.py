from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest

from miles_lite.tito.sglang_compat import TESTED

LIGHT = "import sys, miles_lite.tito; print([name for name in ('torch', 'transformers') if name in sys.modules])"
PARSERS = """
import json, sys
from miles_lite.tito.sglang_parsers import load_sglang_parser
from miles_lite.errors import UserError
parser = load_sglang_parser(reasoning="qwen3", tool_calls="qwen25")
tools = [{"type": "function", "function": {"name": "run", "parameters": {}}}]
call = '<tool_call>\\n{"name": "run", "arguments": {"a": 1}}\\n</tool_call>'
good = parser.parse("<think>\\nwhy\\n</think>\\n\\ndo\\n" + call, tools=tools, in_reasoning=False)
bad = parser.parse("do <tool_call>\\n{oops\\n</tool_call>", tools=tools, in_reasoning=False)
try:
    load_sglang_parser(reasoning=None, tool_calls="nonsense")
except UserError as error:
    refused = str(error)
calls = [(call.name, json.loads(call.arguments)) for call in good.tool_calls]
print(json.dumps([good.content.strip(), good.reasoning.strip(), calls, bad.content, refused, "torch" in sys.modules]))
"""


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_the_room_imports_neither_torch_nor_transformers() -> None:
    assert _python(LIGHT) == "[]"


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
def test_sglang_parsers_by_name_without_torch() -> None:
    content, reasoning, calls, bad, refused, torch = json.loads(_python(PARSERS))
    assert (content, reasoning, calls) == ("do", "why", [["run", {"a": 1}]])
    assert "oops" in bad
    assert refused.startswith("--sglang-tool-call-parser nonsense: this SGLang knows ")
    assert not torch


CHANGED = "from miles_lite.tito.sglang_compat import changed; print(list(changed()))"


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
def test_this_sglang_is_one_that_was_tested() -> None:
    assert _python(CHANGED) == "[]"
    assert importlib.metadata.version("sglang") in TESTED, "run tests/tito, then add the version to TESTED"
