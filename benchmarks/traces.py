"""How fast trajectory files become datasets, and whether memory stays flat.

    python benchmarks/traces.py [--json FILE]

Writes trajectory files of nine steps (1,500 tokens), converts them to every format, and reports steps per second of
processor time, beside reading and parsing the same bytes alone. Peak memory is measured for a tenth of the files and
for all of them, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from miles_lite.traces import atraj

FILES, TURNS = 4000, 4
CHILD = """
import resource, sys, time
from pathlib import Path
from miles_lite.traces.datasets import Filters, to_data
import pyarrow.parquet
pyarrow.array([])  # imports pandas: what Python loads once is no part of what is measured
began = time.process_time()
formats = ("sft", "dpo", "rlvr", "parquet")
counts, _ = to_data(Path(sys.argv[1]), Path(sys.argv[2]), formats=formats, filters=Filters(), splits={})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(counts["steps"], time.process_time() - began, peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    file = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        few, all_ = Path(folder, "few"), Path(folder, "all")
        for index in range(FILES):
            for into in [all_] + [few] * (index < FILES // 10):
                atraj.write(_trajectory(index), into / f"{index:06d}.atraj")
        _, _, peak_few = _convert(few, Path(folder, "out"))
        steps, seconds, peak = _convert(all_, Path(folder, "out"))
        began = time.process_time()
        for path in all_.iterdir():
            orjson.loads(path.read_bytes())
        floor = time.process_time() - began
    if file:
        numbers = {
            "steps_per_s": round(steps / seconds),
            "floor_steps_per_s": round(steps / floor),
            "peak_rss_mb": round(peak, 1),
            "peak_rss_mb_of_a_tenth": round(peak_few, 1),
        }
        file.write_text(json.dumps(numbers, indent=2))
    print(f"to-data, all formats  {steps / seconds:10,.0f} steps/s   (at least 20,000 is the aim)")
    print(f"reading JSON alone    {steps / floor:10,.0f} steps/s")
    print(f"peak memory           {peak:10.1f} MB      ({peak_few:.1f} MB with a tenth of the files)")


def _convert(folder: Path, out: Path) -> tuple[int, float, float]:
    argv = [sys.executable, "-c", CHILD, str(folder), str(out)]
    steps, seconds, peak = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    return int(steps), float(seconds), float(peak)


def _trajectory(index: int) -> atraj.Trajectory:
    steps: list[dict[str, object]] = [{"role": "system", "content": "s" * 400, "turn": 0, "input_ids": []}]
    for turn in range(TURNS):
        text = f"task {index // 8}, turn {turn}: " + "look at the file again. " * 10
        steps.append({"role": "user", "content": text, "turn": turn, "input_ids": [index // 8, *range(250)]})
        output = {"output_ids": [index, *range(120)], "output_logprobs": [-0.4321] * 121, "temperature": 1.0}
        steps.append(
            {"role": "assistant", "content": text, "turn": turn, "parent": turn - 1 if turn else None, **output}
        )
    data = {"format": atraj.FORMAT, "version": 1, "task": None, "reward": float(index % 2), "leaves": [TURNS - 1]}
    return atraj.parse(data | {"steps": steps})


if __name__ == "__main__":
    main()
