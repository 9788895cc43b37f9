"""What a prompt file of many rows costs before the first prompt is dealt: seconds, and memory at the most.

    python benchmarks/prompt_rows.py [--rows 10000000]

Each source is opened in a process of its own, as the rollout manager opens it, shuffled; beside it, a list of all rows,
as most trainers hold them (of a tenth of the rows, for it grows with them).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROW = '{{"input": "What is {at} + {at}?", "label": "{label}", "metadata": {{"level": {level}}}}}\n'
STREAMED = """
import sys
from miles_lite.config.rollouts import Data
from miles_lite.rollout.prompts import open_source
source = open_source(Data(prompt_data=sys.argv[1], label_key="label", rollout_shuffle=True))
for _ in range(1000):
    source.take()
"""
HELD = """
import json, random, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
random.shuffle(rows)
"""


def write(folder: Path, rows: int) -> dict[str, Path]:
    """The same rows as JSONL, a tenth of them, and as Parquet."""
    import pyarrow
    from pyarrow import parquet

    files = {"jsonl": folder / "p.jsonl", "tenth": folder / "tenth.jsonl", "parquet": folder / "p.parquet"}
    with files["jsonl"].open("w") as whole, files["tenth"].open("w") as tenth:
        for at in range(rows):
            line = ROW.format(at=at, label=2 * at, level=at % 5)
            whole.write(line)
            if at < rows // 10:
                tenth.write(line)
    writer = None
    for begin in range(0, rows, 100_000):
        span = range(begin, min(begin + 100_000, rows))
        columns = {
            "input": [f"What is {at} + {at}?" for at in span],
            "label": [str(2 * at) for at in span],
            "metadata": [{"level": at % 5} for at in span],
        }
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(files["parquet"], table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return files


def measured(script: str, file: Path) -> dict[str, float]:
    """Seconds of a process of its own, of its processor, and its peak resident memory in MB."""
    told = """
import re, time
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], time.process_time())
"""
    began = time.monotonic()
    command = [sys.executable, "-c", script + told, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, processor = done.stdout.split()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(float(processor), 1),
        "peak_mb": int(peak) // 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write {name: value} here")
    options = parser.parse_args()
    rows, numbers = options.rows, dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), rows)
        for name, script, file in (
            ("nothing but imports", STREAMED.split("source =")[0], files["jsonl"]),
            ("streamed jsonl", STREAMED, files["jsonl"]),
            ("streamed parquet", STREAMED, files["parquet"]),
            ("held jsonl, a tenth", HELD, files["tenth"]),
        ):
            seen = measured(script, file)
            print(json.dumps({"source": name, "rows": rows, **seen}), flush=True)
            label = name.replace(" ", "_").replace(",", "")
            numbers |= {f"{label}_{what}": value for what, value in seen.items()}
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
