#!/usr/bin/env python3
"""`make bench-published`: measure again what `debzero bench` and `debzero tune` show in docs/benchmarks, on a host with
one GPU.

Each part leaves its raw JSON there; `debzero bench --render FILE.json` renders a bench's page from it. After an
interruption the next start resumes: a bench with the rows it has not measured, a search with its finished trials.

    python3 python/benchmarks/published.py                            # all that one GPU can measure
    python3 python/benchmarks/published.py --only article-2 tune      # these
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import common
import pairs
import yaml

BENCHMARKS = common.ROOT / "docs" / "benchmarks"
WORK = common.ROOT / ".cache" / "bench"
SHARED = ["--share-gpu", "--cap", "40", "--steps", "4", "--warmup", "2", "--repeats", "1", "--limit", "3"]
# The job, the command and its options. Memory is the same in each step, so a few steps are enough.
PARTS = {
    "article-2": ("article.yml", "bench", ["--ranks", "2", *SHARED]),
    "article-2-gpus": ("article.yml", "bench",
                       ["--ranks", "2", "--cap", "40", "--steps", "10", "--warmup", "6", "--repeats", "1",
                        "--limit", "3"]),
    "article-4": ("article.yml", "bench", ["--ranks", "4", "--offload", "none", *SHARED]),
    "bert-large-1": ("bert-large.yml", "bench",
                     ["--ranks", "1", "--offload", "none", "--repeats", "2", "--limit", "3"]),
    "inference": ("bert-large.yml", "bench", ["--inference"]),
    "tune": ("bert-large.yml", "tune", ["--exhaustive", "--dry-run", "--steps", "10", "--warmup", "5", "--limit", "3"]),
}
RESULTS = {"bench": "results.json", "tune": "tune.json"}
TINY = {"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64}
TINY_OPTIONS = {"bench": ["--stages", "none", "--offload", "none", "--repeats", "1"], "tune": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS,
                        default=[part for part in PARTS if part != "article-2-gpus"], metavar="PART",
                        help=f"some of {', '.join(PARTS)} (default: all but article-2-gpus, which takes two GPUs)")
    parser.add_argument("--results", type=Path, default=BENCHMARKS, help="where the JSON goes")
    parser.add_argument("--name", default="gpu", help="what to call the host in it")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with torch (default: this one)")
    parser.add_argument("--tiny", action="store_true",
                        help="a rehearsal on a CPU: a tiny model; its numbers mean nothing")
    options = parser.parse_args()
    look = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if not options.tiny and subprocess.run([options.python, "-c", look]).returncode:
        parser.error(f"{options.python} finds no GPU here; --tiny rehearses it on a CPU")
    jobs = options.results.absolute() / "tiny" if options.tiny else BENCHMARKS
    make(jobs, options.python, options.tiny)
    failed = [part for part in options.only if not measure(part, jobs, options)]
    print(f"not measured: {', '.join(failed)}" if failed else f"all are in {options.results}")
    return 1 if failed else 0


def make(folder: Path, python: str, tiny: bool) -> None:
    """The data and the model that the jobs name, and the folder for NVMe offload."""
    shape = TINY if tiny else pairs.BERT_LARGE
    folder.mkdir(parents=True, exist_ok=True)
    if not tiny:
        Path(yaml.safe_load((BENCHMARKS / "article.yml").read_text())["zero"]["nvme_path"]).mkdir(parents=True,
                                                                                                  exist_ok=True)
    if not (folder / "pairs").is_dir():
        rows, held_out = (64, 16) if tiny else (pairs.TRAIN, pairs.HELD_OUT)
        pairs.write_pairs(folder / "pairs", rows, held_out, shape["vocab_size"])
    if not (folder / "bert-large" / "config.json").is_file():
        command = [python, common.BENCH / "pairs.py", "model", folder / "bert-large", "--shape", json.dumps(shape)]
        WORK.mkdir(parents=True, exist_ok=True)
        common.run(command, WORK / "model.log", 300)
    for job in {job for job, _, _ in PARTS.values()} if tiny else ():
        values = yaml.safe_load((BENCHMARKS / job).read_text())
        values["train"].update(precision="fp32", global_batch=2, micro_batch=1)
        values["output"] = str(folder / "out" / Path(job).stem)
        del values["data"]["max_length"]
        (folder / job).write_text(json.dumps(values))


def measure(part: str, jobs: Path, options: argparse.Namespace) -> bool:
    """Run one part, and keep its results. False where it failed."""
    job, command, arguments = PARTS[part]
    if options.tiny:
        arguments = [*arguments, *TINY_OPTIONS[command], "--steps", "2", "--warmup", "2"]
    results = options.results.absolute()
    folder = Path(yaml.safe_load((jobs / job).read_text())["output"] + f"-{command}")
    arguments = [*arguments, "--name", options.name]
    if command == "bench":
        folder = (results if options.tiny else WORK) / part
        arguments = [*arguments, "--output", os.path.relpath(folder)]
    if "--inference" in arguments:  # it asks a trained model
        WORK.mkdir(parents=True, exist_ok=True)
        common.run([options.python, "-m", "debzero", "train", jobs / job, "--again"], WORK / f"{part}.log", 1800)
    print(f"== {part}: debzero {command} {' '.join(arguments)}", flush=True)
    # Ctrl-C reaches the command, too, and ending its run takes longer than subprocess.run waits for a child then.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    code = subprocess.run([options.python, "-m", "debzero", command, os.path.relpath(jobs / job), *arguments],
                          env=common.variables_of(options.python)).returncode
    signal.signal(signal.SIGINT, before)
    if (folder / RESULTS[command]).is_file():
        shutil.copy(folder / RESULTS[command], results / f"{part}.json")
    if code == 128 + signal.SIGINT:
        raise SystemExit(code)
    return code == 0


if __name__ == "__main__":
    raise SystemExit(main())
