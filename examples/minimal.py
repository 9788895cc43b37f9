"""A whole run in Python, without a GPU or a download: a model made on the spot learns to answer in vowels.

python examples/minimal.py [FOLDER]
"""

import json
import sys
from pathlib import Path

from openai import AsyncOpenAI

from miles_lite.config.options import parse
from miles_lite.init_model.build import init_model
from miles_lite.job.loop import train


async def agent(base_url, api_key, prompt, request_kwargs, **_):
    """One rollout. Any client and any number of turns: what is sampled through `base_url` is what is trained."""
    async with AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        messages = [{"role": "user", "content": prompt}]
        reply = await client.chat.completions.create(model="policy", messages=messages, **request_kwargs)
    return {"response": reply.choices[0].message.content}


async def reward(config, rollout, response, label, **_):
    """The share of the answer that is a vowel."""
    return sum(letter in label for letter in response) / max(1, len(response))


def main(folder: Path) -> None:
    words = [f"say {first}{second} to me" for first in "bcdfgh" for second in "aeiou"]
    init_model(folder / "model", corpus=words, hidden=64, layers=2, heads=4, intermediate=128, vocab_size=300)
    rows = [{"input": word, "label": "aeiou"} for word in words]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"""--hf-checkpoint {folder}/model --prompt-data {folder}/prompts.jsonl --label-key label
        --custom-agent-function-path {__file__}:agent --custom-rm-path {__file__}:reward --run-dir {folder}/run
        --rollout-batch-size 4 --n-samples-per-prompt 8 --num-rollout 15 --rollout-max-response-len 8 --lr 5e-3
        --device cpu --colocate"""
    config, _ = parse(flags.split())
    summary = train(config)
    print(f"reward: {summary['reward_first5']:.2f} at first, {summary['reward_last5']:.2f} in the end")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/minimal").resolve())
