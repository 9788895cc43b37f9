"""The parser of replies is the one that reads what the template prints, or what it does not read is said."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from miles_lite.tito.parser_proof import choose_parser
from miles_lite.tito.render import JinjaRenderer
from tests.tito.material import bare_tito, template, templates, tito_for

PROBE = """
import json, sys
from miles_lite.tito.parser_proof import choose_parser
from tests.tito.material import template, tito_for
found = {}
for name in sys.argv[1:]:
    proof = choose_parser(tito_for(name), template(name), None)
    parts = [part and part.name for part in (proof.parser.reasoning, proof.parser.calls)]
    found[name] = [*parts, proof.weight]
print(json.dumps(found))
"""
TAGS, HERMES = "<think> tags", "JSON in <tool_call> tags"
READ = {
    "trl/qwen3": (TAGS, HERMES),
    "trl/qwen2_5": (None, HERMES),
    "trl/qwen3_5_think": ("qwen3", "qwen3_coder"),
    "trl/nemotron_3_nano": ("qwen3", "qwen3_coder"),
    "trl/glm4moe": (TAGS, "glm45"),
    "trl/llama3_1": (None, "llama3"),
    "trl/llama3_2": (None, "llama3"),
    "trl/lfm2_2_5": (TAGS, "lfm2"),
    "trl/lfm2_v2": (None, "lfm2"),
    "trl/muse_glimmer": ("muse", "muse"),
    "trl/deepseekv3": ("deepseek-v3", "deepseekv3"),
    "trl/gemma4": ("gemma4", "gemma4"),
    "trl/gemma3": (None, None),
    "trl/gptoss": ("gpt-oss", "gpt-oss"),
    "local/glm4_5": (TAGS, "glm45"),
    "local/glm4_6": (TAGS, "glm45"),
    "local/glm4_7": ("glm45", "glm47"),
    "local/llama3_2": (None, "llama3"),
    "local/kimi_k2_thinking": ("kimi_k2", "kimi_k2"),
    "local/minimax_m2": (TAGS, "minimax-m2"),
    "local/deepseek_v3_1": (TAGS, "deepseekv31"),
}


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
def test_the_parser_that_reads_the_templates_own_calls_is_found() -> None:
    """In a process of its own, since these parsers leave a bare `sglang` behind."""
    names = [name for name in templates() if not name.endswith("_training")]
    argv = [sys.executable, "-c", PROBE, *names]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: tuple(found[name][:2]) for name in READ if name in found} == {
        name: parts for name, parts in READ.items() if name in found
    }
    assert not {name for name, (*_, weight) in found.items() if weight}


def test_what_a_parser_does_not_read_is_told_in_the_templates_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miles_lite.tito.parser_proof.sglang_installed", lambda: False)
    odd = template("trl/qwen3").replace('{"name": "', '{"tool": "')
    assert odd != template("trl/qwen3")
    tito = bare_tito(JinjaRenderer(odd), tito_for("trl/qwen3").encoder)
    proof = choose_parser(tito, odd, None)
    assert (proof.weight, proof.parser.calls and proof.parser.calls.name) == (2, HERMES)
    assert '<tool_call>\\n{"tool": "get_weather"' in proof.flaw
    assert f"no call is read by {HERMES}" in proof.flaw
    assert "NOT READ: of" in dataclasses.replace(tito, flaw=proof.flaw).table()


def test_a_template_without_tools_has_nothing_to_prove() -> None:
    proof = choose_parser(tito_for("trl/gemma3"), template("trl/gemma3"), None)
    assert (proof.flaw, proof.parser.calls) == ("", None)
