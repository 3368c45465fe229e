#!/usr/bin/env python3
"""What does it cost that `debzero check` reads every row?

    python3 python/benchmarks/check_rows.py [--rows 1000000] [--repeats 5]

Writes a csv file of short texts in three classes, and reads it in turns with pyarrow (`read_csv`, all defaults) and as
`debzero check` does: the pass over all rows with the split and the faults, then the same with the lengths in tokens of
a sample, by a tokenizer that learns from it. Each
reading is a process of its own; what it loads is not counted, for check needs it anyway. Exit code 1: either takes
more than 1.5 times the elapsed time of pyarrow (the medians), or any process more than 1 GiB. The CPU time is shown,
too: other programs hardly change it, as they do the elapsed one (`chrt -f 10` before the command keeps them away).
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
# Prints the CPU and elapsed seconds, the most bytes of the process (getrusage counts KiB), and the rows.
READ = """
import json, resource, sys, time
sys.path.insert(0, {source!r})
import pyarrow.csv
from debzero.check.data import data_found
from debzero.job.schema import Job

def check(file):
    job = Job.model_validate({{"model": {{"type": "bert", "vocab_size": 200}}, "output": "/out",
                              "data": {{"dataset": file, "held_out": 0.1}}, "train": {{}}}})
    found = data_found(job, "job.yml", {how!r})
    assert not found.problems, found.problems
    return found.facts["rows"]

read = (lambda file: len(pyarrow.csv.read_csv(file))) if {how!r} == "pyarrow" else check
read({few!r})
began, cpu = time.perf_counter(), time.process_time()
rows = read({file!r})
elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
print(json.dumps([cpu, elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, str(rows)]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "check-rows",
                        help="where the file is written")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file, few = options.folder / "rows.csv", options.folder / "few.csv"
    write(file, options.rows)
    write(few, 100)
    found: dict[str, list[list[float]]] = {"pyarrow": [], "rows": [], "lengths": []}
    for _ in range(options.repeats):
        for how, times in found.items():
            script = READ.format(source=str(common.SOURCE), file=str(file), few=str(few), how=how)
            done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
            times.append(json.loads(done.stdout)[:3])
    print(f"{file.stat().st_size / 2**20:.0f} MiB, {options.rows} rows, {options.repeats} repeats, medians")
    middle = {how: [statistics.median(each) for each in zip(*times)] for how, times in found.items()}
    for how, name in (("pyarrow", "pyarrow"), ("rows", "all rows"), ("lengths", "all rows, lengths in tokens")):
        cpu, elapsed, _ = middle[how]
        print(f"{name:<28} CPU {cpu:.3f} s, {cpu / middle['pyarrow'][0]:.2f} times pyarrow; elapsed {elapsed:.3f} s, "
              f"{elapsed / middle['pyarrow'][1]:.2f} times; at most {max(m for _, _, m in found[how]) / 2**20:.0f} MiB")
    slowest = max(middle["rows"][1], middle["lengths"][1])
    most = max(each[2] for how in ("rows", "lengths") for each in found[how])
    return int(slowest > MOST_TIMES * middle["pyarrow"][1] or most > MOST_BYTES)


def write(file: Path, rows: int) -> None:
    dice = random.Random(1)
    with open(file, "w", encoding="utf-8") as lines:
        lines.write("text,label\n")
        for _ in range(rows):
            lines.write(f"{' '.join(dice.choices(WORDS, k=dice.randint(3, 20)))},{dice.choice(['a', 'b', 'c'])}\n")


if __name__ == "__main__":
    sys.exit(main())
