"""Everything the job starts from, in one folder: tasks, transcripts, and a model that was warm-started on them.

    python prepare.py --out data --seed 0 [--agent tools] [--experts 4]

Invariant: the folder depends on seed, agent and experts alone. In it: train.jsonl, heldout.jsonl, transcripts.jsonl,
model/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bugs import BUGS, CANDIDATES
from make_tasks import make_tasks, write_jsonl
from transcripts import make_transcripts, tools_transcript, transcript

from miles_lite.init_model.build import init_model
from miles_lite.init_model.warm_start import warm_start

TASKS = {"train": 96, "heldout": 48}
TRANSCRIPTS = 1152
CONTEXT = 512
WRITE = {"bash": transcript, "tools": tools_transcript}
"""Which agent's transcripts: mini-swe-agent's (and the harnesses' that speak as it does), or tools_agent.py's."""


def prepare(out: Path, *, seed: int, steps: int, threads: int, agent: str = "bash", experts: int = 0) -> None:
    """Write the folder, saying what was made. Raises UserError where a part of it cannot be."""
    tasks = {split: make_tasks(split, count=count, seed=seed) for split, count in TASKS.items()}
    for split, rows in tasks.items():
        write_jsonl(out / f"{split}.jsonl", rows)
        print(f"{out / split}.jsonl: {len(rows)} tasks of {len(BUGS)} bug classes")
    transcripts = make_transcripts(tasks["train"], count=TRANSCRIPTS, seed=seed, write=WRITE[agent])
    write_jsonl(out / "transcripts.jsonl", transcripts)
    print(f"{out / 'transcripts.jsonl'}: {TRANSCRIPTS} transcripts, reward by chance {1 / CANDIDATES}")
    texts = [f"{message['role']}\n{message['content']}" for line in transcripts for message in line["messages"]]
    parameters = init_model(
        out / "model",
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=128,
        vocab_size=512,
        context=CONTEXT,
        seed=seed,
        experts=experts,
        expert_intermediate=64,
        corpus=texts,
    )
    print(f"{out / 'model'}: {parameters} parameters, warm start of {steps} steps", flush=True)
    done = warm_start(
        out / "model", out / "transcripts.jsonl", steps=steps, batch=8, lr=6e-3, seed=seed, threads=threads
    )
    print(f"{out / 'model'}: loss {done.first_loss:.3f} -> {done.last_loss:.4f} in {done.seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800, help="warm-start steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the warm start")
    parser.add_argument("--agent", choices=sorted(WRITE), default="bash", help="whose format the model learns")
    parser.add_argument(
        "--experts", type=int, default=0, help="experts per layer, two of which take a token (Qwen3-MoE)"
    )
    args = parser.parse_args()
    prepare(args.out, seed=args.seed, steps=args.steps, threads=args.threads, agent=args.agent, experts=args.experts)


if __name__ == "__main__":
    main()
