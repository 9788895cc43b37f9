"""A tiny model that has learned, in seconds, to call tools when the verification asks it to, and to stop.

Invariant: its transcripts are held by the verification's own driver, with an oracle for a model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_lite.commands.init_model import read_corpus
from miles_lite.init_model.build import CHAT_TEMPLATE, init_model
from miles_lite.init_model.warm_start import warm_start
from miles_lite.tito.render import JinjaRenderer
from miles_lite.tito.verification_cases import ROLES
from miles_lite.verify.driver import Driver, FailureMode
from miles_lite.verify.plan import schedule
from miles_lite.verify.trajectories import TOOLS

CITIES = ("Paris", "Rome", "Oslo", "Cairo")
STEPS = 90


async def oracle(messages: Sequence[dict[str, Any]], tool_choice: str) -> dict[str, Any]:
    """Calls get_weather for the city that was asked about last, unless words are asked for."""
    asked = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    if "in words" in asked:
        return {"role": "assistant", "content": "It is sunny."}
    texts = " ".join(message["content"] for message in messages if message["role"] == "user")
    city = max(CITIES, key=texts.rfind)
    call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"c{len(messages)}", "type": "function", "function": call}],
    }


def transcript(roles: Sequence[str], cycles: int) -> list[dict[str, Any]]:
    """A whole conversation; the tools are written out in the system message, as the template prints them."""
    driver = Driver(oracle, FailureMode.ROLLBACK)
    asyncio.run(driver.run(schedule(roles, cycles=cycles)))
    first, *rest = driver.messages
    printed = JinjaRenderer(CHAT_TEMPLATE.strip()).render([first], tools=TOOLS, open_turn=False, options={})
    content = printed.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    assert content != printed
    return [{**first, "content": content}, *rest]


def make_taught_model(folder: Path, *, cycles: int = 1, steps: int = STEPS) -> Path:
    """Write model and tokenizer; the folder."""
    lines = [{"messages": transcript(roles, cycles)} for roles in (ROLES, ("tool", "user"), ("tool",))]
    path = folder / "transcripts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128}
    init_model(folder / "model", **sizes, vocab_size=640, context=1024, seed=0, corpus=list(read_corpus(path)))
    print(warm_start(folder / "model", path, steps=steps, batch=3, lr=6e-3, seed=0, threads=1))
    return folder / "model"
