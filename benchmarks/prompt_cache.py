"""What `miles-lite agent --prompt-cache-dir` saves: the time in which a launched engine reads the system prompt.

    python benchmarks/prompt_cache.py [--json FILE] [--tokens N]

Launches the same engine twice on one cache folder, as the agent does. cold_ms is the first launch: the prompt is
computed (writing to disk goes on beside it). warm_ms is the second: it is loaded. floor_ms is the same request when the
engine has the prompt in memory: on CPU not little, since SGLang's torch_native attention computes a request's whole
sequence however much of it is cached. What warm_ms has beyond it is the loading. Each engine has answered a short
request of other tokens before, so that what an engine does once is in neither. The model is random: 8 layers, 512 wide.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import httpx

from miles_lite.agent.prompt_cache import PromptCache, prompt_cache
from miles_lite.commands.agent import servers_of, serving
from miles_lite.init_model.build import init_model

SIZE = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "intermediate": 1536, "vocab_size": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    parser.add_argument("--tokens", type=int, default=3200, help="length of the system prompt (default: 3200)")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        model, root = Path(scratch, "model"), Path(scratch, "cache")
        init_model(model, **SIZE, context=2 * given.tokens, seed=0, corpus=["a benchmark " * 200])
        ids = [10 + number * 7 % 240 for number in range(given.tokens)]
        cache = prompt_cache(root, model=model, ids=ids, system="", tools=[], flags={})
        cold, loaded_cold, _ = _launch(model, cache, Path(scratch, "run"))
        warm, loaded_warm, floor = _launch(model, cache, Path(scratch, "run"))
        stored = sum(file.stat().st_size for file in cache.folder.iterdir())
    if loaded_cold or loaded_warm != cache.tokens:
        sys.exit(f"the cache did not work: {loaded_cold} tokens loaded at first, {loaded_warm} of {cache.tokens} then")
    numbers = {
        "cold_ms": round(cold, 1),
        "warm_ms": round(warm, 1),
        "floor_ms": round(floor, 1),
        "tokens": cache.tokens,
        "stored_mb": round(stored / 2**20, 1),
    }
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=2))
    print(f"prompt of {given.tokens} tokens computed  {cold:8.1f} ms   (first launch)")
    print(f"{cache.tokens} of them loaded         {warm:8.1f} ms   (second launch, {numbers['stored_mb']} MB on disk)")
    print(f"in the engine's memory         {floor:8.1f} ms")


def _launch(model: Path, cache: PromptCache, run_dir: Path) -> tuple[float, int, float]:
    """(milliseconds of the prompt's first request, tokens that were loaded, milliseconds of the same request again)."""
    with serving(servers_of(str(model), cache.engine_flags(), run_dir)) as stack:
        url = stack.engine_urls[0]
        _ask(url, [5] * 40)
        first, loaded = _ask(url, list(cache.ids))
        cache.warm(url)
        return first, loaded, min(_ask(url, list(cache.ids))[0] for _ in range(3))


def _ask(url: str, ids: list[int]) -> tuple[float, int]:
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 1, "temperature": 0.0}}
    began = time.perf_counter()
    answer = httpx.post(f"{url}/generate", json=body, timeout=300, trust_env=False).raise_for_status().json()
    return 1000 * (time.perf_counter() - began), int(answer["meta_info"]["cached_tokens"])


if __name__ == "__main__":
    main()
