#!/usr/bin/env python3
"""`make bench-oom`: does a job survive that its GPU's memory shrinks while it trains?

    python3 python/benchmarks/oom.py [--ranks 2] [--stage 2]

After some steps, one rank's share of the GPU is lowered (torch.cuda.set_per_process_memory_fraction) to less than its
micro-batch takes. The job must finish without help, with half the micro-batch, the same global batch and every step
exactly once in its metrics. Ranks may share a GPU. Exit code 1: it did not.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import common
import pairs

BATCH, MICRO, STEPS, LOWERED_AT = 128, 64, 24, 12
SHAPE = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072}
# Python runs a module of this name in each process; only the last rank of the first start is meant.
HOOK = '''
import os, sys, threading, time
from pathlib import Path

def lower(metrics, done):
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= LOWERED_AT):
        time.sleep(0.05)
    torch = sys.modules["torch"]
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    held = min(torch.cuda.memory_allocated() for _ in range(200) if not time.sleep(0.005))
    most = held + (torch.cuda.max_memory_allocated() - held) // 3
    torch.cuda.set_per_process_memory_fraction(most / total)
    torch.cuda.empty_cache()
    done.write_text(f"{most}")

folder = Path(os.environ["OOM_FOLDER"])
if os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", 1)) - 1) and not (folder / "lowered").exists():
    threading.Thread(target=lower, args=(folder / "job" / "metrics.jsonl", folder / "lowered"), daemon=True).start()
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "oom",
                        help="where everything is written")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with torch (default: this one)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", default="2", choices=["none", "1", "2", "3"])
    parser.add_argument("--timeout", type=float, default=300, help="seconds that the job may take")
    options = parser.parse_args()
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    hook = folder / "hook"
    hook.mkdir(parents=True)
    (hook / "sitecustomize.py").write_text(HOOK.replace("LOWERED_AT", str(LOWERED_AT)))
    pairs.write_pairs(folder / "data", 1024, 64, SHAPE["vocab_size"])
    common.run([options.python, common.BENCH / "pairs.py", "model", folder / "model", "--shape", json.dumps(SHAPE)],
               folder / "model.log", options.timeout)
    done = common.debzero(options.python, folder, "job", {
        "model": str(folder / "model"), "ranks": options.ranks,
        "data": {"dataset": str(folder / "data"), "text": ["sentence1", "sentence2"], "label": "label",
                 "max_length": 128, "padding": "max_length"},
        "train": {"epochs": 10, "max_steps": STEPS, "global_batch": BATCH * options.ranks, "micro_batch": MICRO,
                  "log_every": 1, "evaluate_every": 10**6},
        "zero": {"stage": options.stage if options.stage == "none" else int(options.stage)},
        "checkpoint": {"steps": 10, "minutes": 1000}}, options.timeout, OOM_FOLDER=str(folder),
        PYTHONPATH=os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")])))
    report, steps = done["report"], [line["step"] for line in done["metrics"] if "loss" in line]
    log = (folder / "job.log").read_text()
    print("\n".join(line for line in log.splitlines() if "memory" in line))
    good = {"memory was lowered": (folder / "lowered").exists(),
            "the log says so": "out of memory with a micro-batch of" in log,
            "the micro-batch is smaller": report["micro_batch"] < MICRO,
            "the global batch is the same": report["global_batch"] == BATCH * options.ranks,
            "every step is there once": steps == list(range(1, STEPS + 1))}
    print(json.dumps({"ranks": options.ranks, "stage": options.stage, "device": report["device"],
                      "global_batch": report["global_batch"], "micro_batch": [MICRO, report["micro_batch"]], **good},
                     indent=2))
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
