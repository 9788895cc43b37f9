"""`miles-lite verify template` on every template at hand, and on templates that are broken on purpose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from miles_lite.cli import main
from tests.tito.material import save_model, template, templates

REFUSES_TOOLS = re.compile("gemma4(_v[345])?$|diffusion_gemma")
"""These close a turn that calls a tool differently once the result is there."""
REWRITES_FRAMES = re.compile("deepseek_?v3(_0324)?$")
"""DeepSeek V3 leaves out the end of the tool results once another call follows."""
BROKEN = {
    "counts the messages": lambda text: "{{ messages | length }}" + text,
    "prints an old message again": lambda text: (
        text + "{% if messages | length > 2 %}{{ messages[1].content }}{% endif %}"
    ),
    "hides tool results": lambda text: text.replace("message.content + '\\n</tool_response>'", "'\\n</tool_response>'"),
    "numbers the turns from the end": lambda text: text.replace(
        "{{- '<|im_start|>' + message.role", "{{- '<|im_start|>' + (loop.revindex | string) + message.role"
    ),
    "forgets the generation prompt": lambda text: text.replace("{%- if add_generation_prompt %}", "{%- if false %}"),
}


def verify(*flags: str, out: Path | None = None) -> int:
    return main(["verify", "template", *flags, *(("--json", str(out)) if out else ())])


@pytest.mark.parametrize("name", [name for name in templates() if not name.endswith("_training")])
def test_every_template_passes_or_names_what_it_refuses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "surface.json"
    code = verify("--template", str(templates()[name]), out=out)
    report, shown = json.loads(out.read_text()), capsys.readouterr().out
    failing = any(rule.search(name) for rule in (REFUSES_TOOLS, REWRITES_FRAMES))
    assert code == (1 if failing else 0), shown[-2000:]
    assert shown.splitlines()[-1].startswith("Verdict: FAIL - " if failing else "Verdict: PASS - ")
    for role, found in report["surface"].items():
        assert (found["verdict"] == "ok") == (found["law"] is None), role
        assert found["context"] in ("short", "real")
    for case in report["cases"]:
        assert case["state"] == "PASS" or case["remark"]
        assert case["state"] != "FAIL" or failing
    assert {"join", "kwargs"} <= set(report)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_template_fails(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (tmp_path / "whole.jinja", tmp_path / "broken.jinja")
    text = _chatml()
    whole[0].write_text(text)
    whole[1].write_text(BROKEN[how](text))
    assert whole[1].read_text() != text
    assert verify("--template", str(whole[0])) == 0
    capsys.readouterr()
    assert verify("--template", str(whole[1])) == 1
    shown = capsys.readouterr().out
    assert "Verdict: FAIL - " in shown.splitlines()[-1]


STYLES = ["<a:{}>", "<｜a:{}｜>", "[[{}]]", "⟦{}⟧", "@@{}@@", "◁{}▷", "%%{}%%"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("composed", [False, True])
def test_control_tokens_of_any_style_are_found_without_a_tokenizer(
    style: str, composed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A template whose turns are `<a:user>...<a:end>`, its tokens written out or put together of the role."""
    file = tmp_path / "unseen.jinja"
    file.write_text(_chat_in(style, composed=composed))
    assert verify("--template", str(file)) == 0, capsys.readouterr().out


def test_a_refusal_without_any_control_token_is_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unseen.jinja"
    rewritten = "{% if message.role == 'assistant' and not loop.last %}(earlier) {% endif %}{{ message.content }}"
    file.write_text(_chat_in("~ {} ", composed=True).replace("{{ message.content }}", rewritten))
    assert verify("--template", str(file)) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Verdict: UNDECIDED - ")
    assert "give --tokenizer DIR" in last


def _chat_in(style: str, *, composed: bool) -> str:
    roles = ("system", "user", "assistant", "tool")
    left, right = style.split("{}")
    begin = f"{_raw(left)}{{{{ message.role }}}}{_raw(right)}"
    if not composed:
        said = {role: _raw(style.format(role)) for role in roles}
        begin = "".join(f"{{% if message.role == {role!r} %}}{text}{{% endif %}}" for role, text in said.items())
    calls = "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    turn = begin + "{{ message.content }}" + calls + _raw(style.format("end"))
    opened = "{% if add_generation_prompt %}" + _raw(style.format("assistant")) + "{% endif %}"
    return "{% for message in messages %}" + turn + "{% endfor %}" + opened


def _raw(text: str) -> str:
    return f"{{{{ {text!r} }}}}"


def test_a_model_folder_is_verified_with_its_own_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", "trl/qwen3", eos="<|im_end|>")
    assert verify("--model", str(folder), "--tito-model", "qwen3", "--thinking", "on") == 0
    shown = capsys.readouterr().out
    assert "text and tokens" in shown
    assert "[PASS] single_tool_thinking N=3 enable_thinking=True" in shown
    assert "single_tool N=" not in shown
    assert "Results: 14/14 passed" in shown
    file = tmp_path / "other.jinja"
    file.write_text(template("trl/qwen3"))
    assert verify("--template", str(file), "--tokenizer", str(folder)) == 0
    assert "text and tokens" in capsys.readouterr().out


def test_a_model_that_ships_an_encoder_is_verified_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", "trl/deepseekv3", eos="<｜end▁of▁sentence｜>", model_type="deepseek_v32")
    (folder / "chat_template.jinja").unlink()
    flags = ("--thinking", "off", "--chat-template-kwargs", '{"thinking": false}')
    assert verify("--model", str(folder), *flags) == 0
    assert "[PASS] parallel_tools N=3" in capsys.readouterr().out


def test_template_options_reach_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--template", str(templates()["trl/qwen3"]), "--thinking", "off")
    out = tmp_path / "surface.json"
    assert verify(*flags, "--chat-template-kwargs", '{"enable_thinking": false}', out=out) == 0
    report = json.loads(out.read_text())
    assert report["kwargs"]["enable_thinking"] is False
    assert report["opening"].endswith("</think>\n\n")
    assert "enable_thinking=" not in capsys.readouterr().out.partition("[PASS]")[2]


def test_a_declared_role_that_is_refused_fails(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--template", str(templates()["trl/qwen3_5_think"]), "--thinking", "off")
    assert verify(*flags) == 0
    assert "[REFUSED] retry_system N=3: " in capsys.readouterr().out
    assert verify(*flags, "--tito-allowed-append-roles", "tool", "system") == 1
    shown = capsys.readouterr().out
    assert "[PASS] single_tool N=3" in shown
    assert "system" in shown.splitlines()[-1]


def test_what_no_case_covers_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--template", str(templates()["trl/qwen3"])) == 0
    shown = capsys.readouterr().out
    assert re.findall("^Not covered: (.*)$", shown, re.MULTILINE) == ["thinking, user + system"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --template FILE.jinja and --model DIR"),
        (["--template", "/no/such.jinja"], "--template /no/such.jinja: cannot be read: No such file"),
        (["--model", "/no/such"], "/no/such does not exist"),
        (["--model", "m", "--tokenizer", "t"], "--tokenizer goes with --template"),
        (["--template", "{file}", "--chat-template-kwargs", "{"], "--chat-template-kwargs: not JSON"),
        (["--template", "{file}", "--chat-template-kwargs", "[]"], "takes a JSON object"),
        (["--template", "{file}", "--tito-model", "qwen9"], "--tito-model qwen9: known are auto"),
        (["--template", "{file}", "--tito-allowed-append-roles", "robot"], "no role robot"),
        (["--template", "{file}", "--thinking", "maybe"], "invalid choice: 'maybe'"),
        (["--template", "{broken}"], "does not compile"),
        (["--template", "{file}", "--json", "/no/such/out.json"], "--json /no/such/out.json: cannot be written"),
    ],
)
def test_bad_input_is_one_clear_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    names = {"{file}": str(templates()["trl/qwen3"]), "{broken}": str(broken)}
    assert verify(*(names.get(flag, flag) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_template_without_system_messages_is_verified_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--template", str(templates()["trl/gemma"])) == 0
    assert "[PASS] multi_turn_no_tool N=2" in capsys.readouterr().out


def test_a_template_that_prints_no_chat_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "refusing.jinja", tmp_path / "surface.json"
    file.write_text("{{ raise_exception('never') }}")
    assert verify("--template", str(file), out=out) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Verdict: FAIL - not even a plain chat: never"
    report: dict[str, Any] = json.loads(out.read_text())
    assert {found["law"] for found in report["surface"].values()} == {"renders"}


def _chatml() -> str:
    from tests.models import CHAT_TEMPLATE

    return CHAT_TEMPLATE.strip()
