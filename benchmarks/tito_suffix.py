"""What a turn's suffix costs deep in a conversation, beside rendering and tokenizing all of it again.

    python benchmarks/tito_suffix.py [--json FILE]

Qwen3's tokenizer and template; a history of 105k tokens in turns of an agent that reads files; a tool result of 400
tokens is appended. Medians of processor time, one thread, so that other work on the machine counts for little. Printed:

suffix_ms_105k, full_ms_105k, ratio_105k  the suffix; all rendered and tokenized again; their ratio  (<= 1.5, -, >= 150)
history_tokens                            how long the history really is
encode_ms_400                             the tokenizer alone on the suffix's text
suffix_ms_100, encode_ms_100              the same two for a tool result of 100 tokens  (<= 0.25, -)
suffix_ms_1k                              the suffix of 400 tokens after a history of one thousand
verify_seconds_max                        proving what may be appended: the slowest of all templates at hand  (<= 0.5)
import_seconds                            `import miles_lite.tito`, wall time, best of five  (<= 0.3)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the tokenizers and templates, which are the tests'

from miles_lite.tito import Message, Tito, tito_of  # noqa: E402
from miles_lite.tito.discover import verify_best  # noqa: E402
from tests.tito.material import encoder_for, renderer_for, save_model, templates  # noqa: E402

IMPORT = "import time; t = time.perf_counter(); import miles_lite.tito; print(time.perf_counter() - t)"
TURN = 45  # tokens of a turn beside the tool result
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Runs {name} in the sandbox and returns what it prints.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
    for name in ("read_file", "search", "run_tests", "edit_file")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    args = parser.parse_args()
    numbers = _measure()
    for name, value in numbers.items():
        print(f"{name:20s} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2))


def _measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="miles_lite-bench-") as folder:
        tito = tito_of(save_model(Path(folder), "trl/qwen3", eos="<|im_end|>"), append_roles=("tool", "user"))
    stop = tito.encoder.id_of("<|im_end|>")
    source = _source()
    history = _history(tito, source, tokens=105_000)
    large, small = (_result(tito, source, tokens) for tokens in (400, 100))

    def append(messages: list[Message], result: Message) -> Callable[[], Any]:
        return lambda: tito.append(messages, [result], stop=stop, tools=TOOLS)

    def encode(result: Message) -> Callable[[], Any]:
        text = tito.encoder.decode(tito.append(history, [result], stop=stop, tools=TOOLS).ids)
        return lambda: tito.encoder.encode(text)

    def full() -> None:
        shown = tito.renderer.render([*history, large], tools=TOOLS, open_turn=True, options={})
        tito.encoder.encode(shown)

    suffix_ms, full_ms = _milliseconds(append(history, large)), _milliseconds(full, times=7)
    return {
        "suffix_ms_105k": suffix_ms,
        "full_ms_105k": full_ms,
        "ratio_105k": full_ms / suffix_ms,
        "history_tokens": len(tito.first(history, tools=TOOLS).ids),
        "encode_ms_400": _milliseconds(encode(large)),
        "suffix_ms_100": _milliseconds(append(history, small)),
        "encode_ms_100": _milliseconds(encode(small)),
        "suffix_ms_1k": _milliseconds(append(history[:6], large)),
        "verify_seconds_max": max(map(_verify_seconds, templates())),
        "import_seconds": min(_import_seconds() for _ in range(5)),
    }


def _history(tito: Tito, source: Iterator[str], *, tokens: int) -> list[Message]:
    """A conversation of about so many tokens that ends in a tool call, as sessions hold it: arguments are JSON text."""
    messages: list[Message] = [{"role": "user", "content": "Find out why the tests fail, and mend it."}]
    size = 0
    for number in itertools.count():
        function = {"name": "read_file", "arguments": json.dumps({"path": f"src/module_{number}.py"})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": "I look at the next file.", "tool_calls": [call]})
        if size >= tokens:
            break
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": next(source)})
        size += len(tito.encoder.encode(str(messages[-1]["content"]))) + TURN
    return messages


def _result(tito: Tito, source: Iterator[str], tokens: int) -> Message:
    ids = tito.encoder.encode("".join(itertools.islice(source, 4)))[:tokens]
    return {"role": "tool", "tool_call_id": "call_0", "content": tito.encoder.decode(ids)}


def _source() -> Iterator[str]:
    """Pieces of the standard library, about 300 tokens each."""
    for path in itertools.cycle(sorted(Path(json.__file__).parent.parent.glob("*.py"))):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        yield from ("".join(lines[start : start + 30]) for start in range(0, len(lines), 30))


def _milliseconds(work: Callable[[], Any], *, times: int = 300) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(times)) * 1000


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _verify_seconds(name: str) -> float:
    encoder, renderer = encoder_for(name), renderer_for(name)
    return _seconds(lambda: verify_best(renderer, encoder))


def _import_seconds() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


if __name__ == "__main__":
    main()
