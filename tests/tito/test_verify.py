from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from miles_lite.errors import UserError
from miles_lite.tito import AppendSurface, Tito, tito_of
from miles_lite.tito.encode import Encoder
from miles_lite.tito.laws import verify
from miles_lite.tito.render import JinjaRenderer
from miles_lite.tito.verification_cases import ROLES
from tests.tito.material import ALIAS, CHATML, OVERLAP

GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
HOISTED = (
    "{% for m in messages if m.role == 'system' %}" + TURN + "{% endfor %}"
    "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + GENERATION
)
DROPPED = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + TURN + "{% endif %}{% endfor %}" + GENERATION
)
RAISES = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must be first') }}{% endif %}" + TURN + "{% endfor %}" + GENERATION
)
SILENT = "{% for m in messages %}" + TURN + "{% endfor %}"
RECOUNTED = "{{ messages | length }}" + CHATML
REPEATED = CHATML.replace(
    "{% if add", "{% if messages[-1].role == 'system' %}{{ messages[0].content }}{% endif %}{% if add"
)


def _surface(template: str, tiny_model: Path) -> AppendSurface:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token in re.findall(r"<\|[a-z_]+\|>", template + "<|user|>")]
    )
    return verify(JinjaRenderer(template), Encoder(tokenizer))


@pytest.mark.parametrize(
    ("template", "role", "law"),
    [
        (CHATML, "user", None),
        (CHATML, "system", None),
        (CHATML, "tool", None),
        (OVERLAP, "user", None),
        (ALIAS, "user", None),
        (HOISTED, "system", "conserve"),
        (HOISTED, "user", None),
        (DROPPED, "system", "conserve"),
        (RAISES, "system", "renders"),
        (SILENT, "user", "opens"),
        (RECOUNTED, "user", "prefix"),
        (REPEATED, "system", "no-leak"),
    ],
)
def test_a_role_is_refused_by_the_law_it_breaks(template: str, role: str, law: str | None, tiny_model: Path) -> None:
    assert _surface(template, tiny_model).roles[role].law == law


def test_a_template_with_tools_takes_every_role(tito: Tito) -> None:
    assert {role: verdict.law for role, verdict in tito.surface.roles.items()} == dict.fromkeys(ROLES)
    assert tito.surface.context(ROLES) == "short"
    assert tito.surface.join is not None
    assert tito.surface.join.closing == "<|im_end|>\n"


def test_a_declared_role_outside_the_surface_fails_at_start(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(DROPPED)
    with pytest.raises(UserError, match=r"--tito-allowed-append-roles system: .* breaks the law `conserve`"):
        tito_of(folder, append_roles=("tool", "user", "system"))
    assert tito_of(folder, append_roles=("tool", "user")).surface.proved(["user"])


def test_folders_that_cannot_be_used_say_why(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        tito_of(tmp_path / "nowhere")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match="does not compile"):
        tito_of(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        tito_of(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        tito_of(folder)


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match="has no tokenizer"):
        tito_of(tmp_path)
