#!/usr/bin/env python3
"""`make bench-start`: how long from `debzero train` to a finished first step, beside the imports alone.

    python python/benchmarks/start.py                       # BERT-Large, a rank on each GPU
    python python/benchmarks/start.py --tiny --ranks 2      # a tiny model, on processors, too

Each round first lets Python import torch and the parts of transformers that a training needs, and then starts the job.
The first round compiles code and reads files that nobody has read before; the others find both in caches. How long a
host takes for the imports differs a lot, so compare what a start takes beyond them.
"""
from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import memory

from debzero.base.files import write_json

IMPORTS = "import torch, transformers; transformers.AutoTokenizer; transformers.AutoModel"
MODEL, STEPS, LIMIT = "bert-large-uncased", 2, 300.0  # seconds that a start may take
PACKAGES = ("torch", "transformers", "deepspeed", "triton")


def job(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    ranks, micro = options.ranks, 2 if options.tiny else 64
    rows = folder / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{'w1 ' * 60}w{row % 7},c{row % 2}\n"
                                              for row in range(2 * STEPS * micro * ranks)))
    return {"model": str(model), "data": {"dataset": str(rows), "held_out": 0.1, "max_length": 64},
            "train": {"epochs": 1, "max_steps": STEPS, "global_batch": micro * ranks, "micro_batch": micro,
                      "log_every": 1},
            "zero": {"stage": options.stage}, "ranks": ranks, "checkpoint": {"minutes": 1000}}


def start(folder: Path, of: dict[str, Any]) -> dict[str, float]:
    """One round: seconds."""
    imports = common.run([sys.executable, "-c", IMPORTS], folder / "imports.log", 300)["wall_seconds"]
    shutil.rmtree(folder / "run", ignore_errors=True)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(seconds_to, folder / "run" / "metrics.jsonl", LIMIT)
        common.debzero(sys.executable, folder, "run", of, LIMIT)
    took = first.result()
    return {"imports": round(imports, 2), "first_step": round(took, 2), "beyond": round(took - imports, 2)}


def seconds_to(file: Path, limit: float) -> float:
    """Until something is in the file, at most `limit`."""
    began = time.monotonic()
    while time.monotonic() < began + limit and not (file.is_file() and file.stat().st_size):
        time.sleep(0.02)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.ROOT / ".cache" / "bench" / "start.json",
                        help="the JSON to write")
    parser.add_argument("--scratch", type=Path, default=common.ROOT / ".cache" / "bench" / "start",
                        help="a folder with 20 GB of room")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=0, help="default: one on each GPU")
    parser.add_argument("--stage", default="none", choices=["none", "1", "2", "3"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also for processors")
    options = parser.parse_args()
    import torch

    if not options.tiny and not torch.cuda.device_count():
        parser.error("this host has no GPU; --tiny rehearses it on processors")
    folder = options.scratch.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.ranks = options.ranks or torch.cuda.device_count() or 1
    memory.make_model(MODEL, folder / str(options.tiny), options.tiny)
    of, rounds = job(folder / str(options.tiny) / MODEL, folder, options), []
    for number in range(1, options.rounds + 1):
        rounds.append(start(folder, of))
        print(f"{number}/{options.rounds}  " + "  ".join(f"{name} {took:.1f} s" for name, took in rounds[-1].items()),
              flush=True)
    facts = {"gpu": torch.cuda.get_device_name(0) if torch.cuda.device_count() else "none",
             "processor": common.processor(), "ranks": options.ranks, "stage": options.stage, "tiny": options.tiny,
             "versions": common.versions(sys.executable, *PACKAGES)}
    write_json(options.results, {"facts": facts, "rounds": rounds})
    later = rounds[1:] or rounds
    print("later rounds, median: " + ", ".join(
        f"{name} {statistics.median(one[name] for one in later):.1f} s" for name in later[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
