"""`--chat-template-path`: the file takes the place of the model folder's template."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.session.server import load_tito
from miles_lite.tito import Tito, tito_of
from tests.models import CHAT_TEMPLATE
from tests.session.engine import answer, bench, spec

OTHER = CHAT_TEMPLATE.replace("'<|im_start|>' + message.role", "'<|im_start|>The ' + message.role")
ASK = [{"role": "user", "content": "hi"}]


async def test_sessions_print_the_files_template(tiny_model: Path, tmp_path: Path, tito: Tito) -> None:
    assert OTHER != CHAT_TEMPLATE
    file = tmp_path / "other.jinja"
    file.write_text(OTHER)

    async with bench(tiny_model, lambda body: answer([40, 2]), chat_template_path=str(file)) as b:
        status, _ = await b.chat(await b.client.create(), ASK)
        assert status == 200
        sent = tito.encoder.decode(b.engine.requests[-1]["input_ids"])
        assert sent.startswith("<|im_start|>The user\nhi<|im_end|>")


def test_a_file_that_is_none_is_refused_by_its_flag(tiny_model: Path, tmp_path: Path) -> None:
    binary, broken = tmp_path / "binary.jinja", tmp_path / "broken.jinja"
    binary.write_bytes(b"\xff\xfe\x00")
    broken.write_text("{% for %}")
    for file, words in (
        (tmp_path / "none.jinja", "--chat-template-path .*none.jinja: cannot be read: No such file"),
        (binary, "cannot be read: it is not UTF-8 text"),
        (broken, "broken.jinja cannot be used: the chat template does not compile"),
    ):
        with pytest.raises(UserError, match=words):
            tito_of(tiny_model, chat_template=file)


def test_a_server_warns_of_calls_that_are_not_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("miles_lite.tito.parser_proof.sglang_installed", lambda: False)
    file = tmp_path / "odd.jinja"
    file.write_text(CHAT_TEMPLATE.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>"))
    load_tito(spec(tiny_model, tito_allowed_append_roles=("user",), chat_template_path=str(file)))
    assert "replies are not read as this model writes them: of '<call>" in caplog.text
    assert "no call is read; name the parsers" in caplog.text
    assert "--sglang-tool-call-parser" in caplog.text
