from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.tito.families import FAMILIES, Family, family_named, family_of_type, parsers_for
from tests.tito.material import template

DOCS = Path(__file__).parents[2] / "docs" / "tito.md"
LOADS = """
import json, sys
from miles_lite.tito import tito_of
found = {}
for name in sys.argv[2:]:
    tito = tito_of(sys.argv[1], append_roles=("tool", "user"), family=name)
    found[name] = [tito.parser.reasoning.name, tito.parser.calls.name, dict(tito.surface.kwargs)]
print(json.dumps(found))
"""


def test_the_documentation_lists_every_row() -> None:
    lines = [[cell.strip() for cell in line.split("|")] for line in DOCS.read_text(encoding="utf-8").splitlines()]
    cells = [line[1:-1] for line in lines if len(line) == 6 and line[1].strip("`") in FAMILIES]
    documented = {name.strip("`"): tuple(rest) for name, *rest in cells}
    assert documented.keys() == FAMILIES.keys()
    for name, row in FAMILIES.items():
        parsers = f"`{row.reasoning}`, `{row.tool_calls}`" if row.reasoning else "what the template prints"
        assert documented[name] == (parsers, _options(row), _remark(row))


def _options(row: Family) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in row.kwargs.items())


def _remark(row: Family) -> str:
    return "" if row.verified and not row.encoder else "Python encoder" if row.encoder else "unverified"


def test_names_that_are_no_family_say_which_there_are() -> None:
    with pytest.raises(UserError, match="known are auto, default, qwen3"):
        family_named("qwen9")
    assert family_named("auto") is None
    assert family_named("package.module:encode") == Family("package.module:encode", encoder="package.module:encode")


def test_a_model_type_without_template_has_an_encoder() -> None:
    assert family_of_type("deepseek_v32") is FAMILIES["deepseekv32"]
    assert family_of_type("qwen3") is None


@pytest.mark.parametrize(
    ("name", "parsers"),
    [
        ("trl/qwen3", (None, None)),
        ("trl/qwen2_5", (None, None)),
        ("trl/qwen3_5_think", ("qwen3", "qwen3_coder")),
        ("trl/glm4moe", ("glm45", "glm47")),
        ("trl/gptoss", ("gpt-oss", "gpt-oss")),
        ("trl/llama3_1", (None, "llama3")),
        ("trl/deepseekv3", ("deepseek-v3", "deepseekv3")),
        ("trl/gemma4", ("gemma4", "gemma4")),
    ],
)
def test_a_template_shows_which_parsers_read_its_replies(name: str, parsers: tuple[str | None, str | None]) -> None:
    assert parsers_for(template(name)) == parsers


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
def test_every_family_loads_with_its_parsers_and_options(tiny_model: Path) -> None:
    """In a process of its own, since these parsers leave a bare `sglang` behind; the template is another's."""
    named = [name for name, row in FAMILIES.items() if row.reasoning]
    argv = [sys.executable, "-c", LOADS, str(tiny_model), *named]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        name: [row.reasoning, row.tool_calls, dict(row.kwargs)] for name, row in FAMILIES.items() if name in named
    }
