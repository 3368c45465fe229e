#!/usr/bin/env python3
"""`make bench-gpu`: debzero on a GPU against transformers' Trainer and a plain PyTorch loop, in one call.

BERT-Large's shape with random weights, pairs of MRPC's lengths (pairs.py), global batch 64, bf16, one rank:

    hf          transformers' Trainer, its defaults, padded to 128
    plain       a short PyTorch loop, torch.compile, padded to 128
    article     the tutorial's micro-batch 8 x accumulation 4, fp16, plain PyTorch (slow, so only with --only article)
    max_length  debzero, padded to 128
    bucketed    debzero, its defaults: batches of like lengths, padded to their longest

Each runs in its own process. Speed is samples/s after the untimed steps, in which everything is compiled. TFLOP/s count
padding, too, and "of peak" is their share of the device's dense peak. A program that fails is a row with its reason.

    python3 python/benchmarks/gpu.py --ranks 2    instead, the peak memory per rank of stage none, 1, 2 and 3; ranks may
                                                  share a GPU
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import common
import pairs

from debzero.base.files import write_json
from debzero.model import flops

BATCH, MAX_LENGTH, LOG_EVERY = 64, 128, 10
ACCUMULATION = 4  # the tutorial's, for the stages' memory: what stage 2 shards beyond stage 1 is what accumulates
TINY = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PROGRAMS = ["hf", "plain", "max_length", "bucketed"]
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "triton")


def baseline(options: argparse.Namespace, name: str) -> dict[str, Any]:
    result = options.folder / f"{name}.json"
    steps, untimed = options.steps, options.untimed_steps
    if name == "article":
        steps, untimed = min(40, steps), min(10, untimed)
    took = common.run([options.python, common.BENCH / "baselines.py", name, "--model", options.folder / "model",
                       "--data", options.folder / "data", "--steps", steps, "--untimed-steps", untimed, "--result",
                       result],
                      options.folder / f"{name}.log", options.timeout)
    return {**took, **json.loads(result.read_text())}


def job(options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """debzero's job, with neither checkpoints nor evaluations before the end: they are not what is measured."""
    train = {"epochs": -(-options.steps * BATCH // options.rows) + 1, "max_steps": options.steps, "global_batch": BATCH,
             "micro_batch": options.micro_batch or BATCH, "learning_rate": 3e-5, "log_every": LOG_EVERY,
             "evaluate_every": 10**6}
    values: dict[str, Any] = {
        "model": str(options.folder / "model"),
        "data": {"dataset": str(options.folder / "data"), "text": ["sentence1", "sentence2"], "label": "label",
                 "max_length": MAX_LENGTH},
        "train": train, "checkpoint": {"minutes": 1000}, "ranks": 1}
    if not options.tiny:
        train["precision"] = "bf16"
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
    return values


def trained(options: argparse.Namespace, name: str, **changes: Any) -> dict[str, Any]:
    """One debzero run. Its checkpoint and its weights, gigabytes, are not kept."""
    wanted = job(options, **changes)
    done = common.debzero(options.python, options.folder, name, wanted, options.timeout)
    report, micro = done["report"], wanted["train"]["micro_batch"]
    if report["micro_batch"] != micro:
        raise common.Failed(f"out of memory: it continued with a micro-batch of {report['micro_batch']}, not {micro}")
    for part in ("checkpoints", "model"):
        shutil.rmtree(options.folder / name / part, ignore_errors=True)
    return {"wall_seconds": done["wall_seconds"], "metrics": done["metrics"], "device": report["device"],
            "peak_memory_bytes": report["peak_memory_bytes"], "micro_batch": report["micro_batch"],
            "batch_ranks": report["world_size"]}


def speed(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row of the comparison."""
    if name in ("hf", "plain", "article"):
        row = baseline(options, name)
    else:
        row = trained(options, name, data={"padding": "max_length" if name == "max_length" else "longest"})
        row.update(common.steady(row["metrics"], options.rows, BATCH, options.untimed_steps))
        row["step_ms"] = 1000 * BATCH / row["samples_per_second"]
    if name != "bucketed":  # whose work debzero itself counts, width by width
        sample = flops.per_sample(SimpleNamespace(**options.shape), MAX_LENGTH, "classification")
        row["tflops"] = row["samples_per_second"] * sample / 1e12
    peak = flops.peak(row["device"], "bf16")
    return {**row, "peak_share": row["tflops"] * 1e12 / peak if peak else None}


def memory(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One stage's peak memory per rank: a few steps are enough for it."""
    stage = name.split("-")[1]
    return trained(options, name, ranks=options.ranks, zero={"stage": stage if stage == "none" else int(stage)}, train={
        "global_batch": options.micro_batch * options.ranks * ACCUMULATION, "max_steps": options.steps, "log_every": 1,
        "compile": "never"})


def each(names: list[str], work: Callable[[argparse.Namespace, str], dict[str, Any]], options: argparse.Namespace,
         summary: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """{name: what `work` measured}, written to results.json after each, so that an interrupted call leaves what it
    had. `summary`: of a row, for the terminal."""
    rows: dict[str, dict[str, Any]] = {}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    facts = {"settings": settings, "host": common.processor(), "versions": common.versions(options.python, *PACKAGES)}
    for name in names:
        started = time.time()
        try:
            rows[name] = work(options, name)
        except common.Failed as failure:
            rows[name] = {"failed": str(failure)}
        rows[name]["seconds"] = time.time() - started
        row = rows[name]
        print(f"{name}: {'FAILED: ' + row['failed'] if 'failed' in row else summary(row)}", flush=True)
        write_json(options.folder / "results.json", {**facts, "rows": rows})
    return rows


def speed_table(rows: dict[str, dict[str, Any]]) -> str:
    reference = [name for name in ("hf", "plain", "max_length") if "samples_per_second" in rows.get(name, {})]
    lines: list[list[object]] = [["", "samples/s", "step, ms", "TFLOP/s", "of peak", "memory, GiB",
                                  *(f"x {name}" for name in reference)]]
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, "failed", *[""] * (len(lines[0]) - 2)])
            continue
        lines.append([name, f"{row['samples_per_second']:.0f}", f"{row['step_ms']:.1f}", f"{row['tflops']:.1f}",
                      f"{row['peak_share']:.1%}" if row["peak_share"] else "-",
                      f"{max(row['peak_memory_bytes']) / 2**30:.2f}",
                      *(f"{row['samples_per_second'] / rows[other]['samples_per_second']:.2f}" for other in reference)])
    return common.table(lines)


def memory_table(rows: dict[str, dict[str, Any]]) -> str:
    lines: list[list[object]] = [["", "peak per rank, GiB", "of the first"]]
    first = next((max(row["peak_memory_bytes"]) for row in rows.values() if "failed" not in row), 0)
    for name, row in rows.items():
        peaks = row.get("peak_memory_bytes", [])
        lines.append([name, " ".join(f"{peak / 2**30:.2f}" for peak in peaks) or "failed",
                      f"{max(peaks) / first:.2f}" if peaks else ""])
    return common.table(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "gpu",
                        help="where everything is written")
    parser.add_argument("--python", default=sys.executable, help="the interpreter with torch (default: this one)")
    parser.add_argument("--only", nargs="+", choices=[*PROGRAMS, "article"],
                        help=f"the programs to run (default: {' '.join(PROGRAMS)})")
    parser.add_argument("--rows", type=int, default=pairs.TRAIN)
    parser.add_argument("--steps", type=int,
                        help="optimizer steps of each program (default: 290, 5 epochs; with --ranks 4)")
    parser.add_argument("--untimed-steps", type=int, default=120,
                        help="steps before the clock starts (default: 120, two epochs)")
    parser.add_argument("--micro-batch", type=int,
                        help="rows of a rank's micro-batch (default: 64; with --ranks 8, as the tutorial's)")
    parser.add_argument("--ranks", type=int, help="measure each stage's memory with so many ranks")
    parser.add_argument("--stages", nargs="+", choices=["none", "1", "2", "3"], default=["none", "1", "2", "3"])
    parser.add_argument("--timeout", type=float, default=240, help="seconds that one program may take")
    parser.add_argument("--tiny", action="store_true",
                        help="a smoke test without a GPU: a tiny model, few steps; its numbers mean nothing")
    options = parser.parse_args()
    options.shape, options.folder = TINY if options.tiny else pairs.BERT_LARGE, options.folder.absolute()
    held_out = 64
    if options.ranks:
        options.rows, options.micro_batch, options.steps = 256, options.micro_batch or 8, options.steps or 4
    elif options.tiny:
        options.rows, options.steps, options.untimed_steps = 256, options.steps or 20, 10
    if options.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.steps = options.steps or 290
    if not options.ranks:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # all programs on one GPU, also where there are more

    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    pairs.write_pairs(options.folder / "data", options.rows, held_out, options.shape["vocab_size"])
    common.run([options.python, common.BENCH / "pairs.py", "model", options.folder / "model", "--shape",
                json.dumps(options.shape)],
               options.folder / "model.log", options.timeout)
    if options.ranks:
        rows = each([f"stage-{stage}" for stage in options.stages], memory, options,
                    lambda row: f"{[round(peak / 2**20) for peak in row['peak_memory_bytes']]} MiB, "
                                f"{row['wall_seconds']:.0f} s in all")
        print("\n" + memory_table(rows))
    else:
        rows = each(options.only or PROGRAMS, speed, options,
                    lambda row: f"{row['samples_per_second']:.1f} samples/s, {row['wall_seconds']:.0f} s in all")
        print("\n" + speed_table(rows))
    print(f"\nraw results: {options.folder / 'results.json'}")
    return 1 if any("failed" in row for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
