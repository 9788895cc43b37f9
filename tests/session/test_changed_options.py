"""Template options that change while a conversation goes on: what is asked for is what the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miles_lite.tito import tito_of
from tests.session.engine import answer, bench
from tests.tito.material import save_model

ASK: list[Any] = [{"role": "user", "content": "go"}]
ON = {"role": "user", "content": "on"}


async def test_another_effort_is_printed_where_the_template_prints_it_in_front(tmp_path: Path) -> None:
    """gpt-oss has the effort in its first message, so that another one begins a root."""
    model = save_model(tmp_path / "model", "trl/gptoss", eos="<|return|>", model_type="gpt_oss", vocab_size=151_936)
    tito = tito_of(model, append_roles=("user",))
    said = [*map(int, tito.encoder.encode("<|channel|>final<|message|>ok")), min(tito.stop_ids)]

    script = lambda body: answer(said, finish={"type": "stop", "matched": said[-1]})  # noqa: E731
    async with bench(model, script) as b:
        session = await b.client.create()
        messages = ASK
        for effort in ("low", "low", "high", "high"):
            _, told = await b.chat(session, messages, reasoning_effort=effort)
            assert f"Reasoning: {effort}" in tito.encoder.decode(b.engine.requests[-1]["input_ids"])
            messages = [*messages, told["choices"][0]["message"], ON]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, None, 2]
        assert (await b.client.describe(session))["counts"]["roots_options"] == 1


def test_options_that_open_the_reply_otherwise_go_on(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "trl/qwen3", eos="<|im_end|>", model_type="qwen3", vocab_size=151_936)
    tito = tito_of(model, append_roles=("user",))
    assert tito.begin_alike({}, {"enable_thinking": False})
    assert tito.begin_alike(None, {"enable_thinking": False})
