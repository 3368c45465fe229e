#!/usr/bin/env python3
"""What does it cost that `debzero check` reads every row?

    python3 python/benchmarks/check_rows.py [--rows 1000000] [--repeats 5]

Writes a csv file of short texts in three classes, and reads it in turns with pyarrow (`read_csv`, all defaults) and as
`debzero check` does: the pass over all rows, and the lengths of a sample of them in tokens, with a tokenizer that
learns from it. Each reading is a process of its own; its imports are not counted, for check needs them anyway. Exit
code 1: the pass takes more than 1.5 times as long as pyarrow (the medians), or its process more than 1 GiB.
"""
from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import common

MOST_TIMES, MOST_BYTES = 1.5, 2**30
WORDS = ["the", "old", "red", "small", "near", "house", "cat", "dog", "horse", "drill", "really", "wonderful"]
# Prints the seconds and the most bytes of the process (getrusage counts KiB).
READ = """
import json, resource, sys, time
sys.path.insert(0, {source!r})
from pathlib import Path
import pyarrow, pyarrow.csv, tokenizers, transformers
from transformers import PreTrainedTokenizerFast
from debzero.check.data import data_found
from debzero.job.schema import Job

job = Job.model_validate({{"model": {{"type": "bert", "vocab_size": 200}}, "output": "/out",
                          "data": {{"dataset": {file!r}, "held_out": 0.1}}, "train": {{}}}})
began = time.perf_counter()
if {how!r} == "pyarrow":
    rows = len(pyarrow.csv.read_csv({file!r}))
else:
    found = data_found(job, "job.yml", {how!r})
    assert not found.problems, found.problems
    rows = found.facts["rows"]
seconds = time.perf_counter() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, str(rows)]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "check-rows",
                        help="where the file is written")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "rows.csv"
    write(file, options.rows)
    found: dict[str, list[tuple[float, int, str]]] = {"pyarrow": [], "rows": [], "lengths": []}
    for _ in range(options.repeats):
        for how, times in found.items():
            script = READ.format(source=str(common.SOURCE), file=str(file), how=how)
            done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
            times.append(json.loads(done.stdout))
    base = statistics.median(seconds for seconds, _, _ in found["pyarrow"])
    print(f"{file.stat().st_size / 2**20:.0f} MiB, {options.rows} rows")
    for how, name in (("pyarrow", "pyarrow"), ("rows", "all rows"), ("lengths", "all rows, lengths in tokens")):
        seconds = [each for each, _, _ in found[how]]
        print(f"{name:<28} {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
              f"{statistics.median(seconds) / base:.2f} times pyarrow, "
              f"at most {max(most for _, most, _ in found[how]) / 2**20:.0f} MiB")
    times = statistics.median(seconds for seconds, _, _ in found["rows"]) / base
    return int(times > MOST_TIMES or max(most for _, most, _ in found["lengths"]) > MOST_BYTES)


def write(file: Path, rows: int) -> None:
    dice = random.Random(1)
    with open(file, "w", encoding="utf-8") as lines:
        lines.write("text,label\n")
        for _ in range(rows):
            lines.write(f"{' '.join(dice.choices(WORDS, k=dice.randint(3, 20)))},{dice.choice(['a', 'b', 'c'])}\n")


if __name__ == "__main__":
    sys.exit(main())
