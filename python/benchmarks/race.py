#!/usr/bin/env python3
"""`make bench-train`: the tutorial's script (article.py) against `debzero train`, in turns, on the CPU.

Both train the same small BERT from the same first weights on the same MRPC-shaped pairs (pairs.py), with 2 ranks of one
thread each, global batch 64, the same peak learning rate and warm-up, the same number of epochs and ZeRO
stage 2, and torch's AdamW (a DeepSpeed without prebuilt operators has no other on a CPU). What differs is what each
brings: the tutorial pads to 128 and accumulates 4 micro-batches of 8; debzero takes its own defaults for batching,
padding, micro-batch and the learning rate's decay.

Speed is samples/s of the training loop, after its first steps and without evaluation; the wall clock of the whole run,
imports, tokenising and checkpoints included, is shown beside it, and so is the CPU time of all its processes, which a
busy machine changes least. All are printed as ratios and written with everything else to results.json.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common
import pairs

from debzero.base.files import write_json
from debzero.run.progress import EVALUATION

GLOBAL_BATCH, MAX_LENGTH = 64, 128
SHAPE = {"vocab_size": 1200, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 256, "max_position_embeddings": MAX_LENGTH}
TINY = {**SHAPE, "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
SHOWN = ("samples_per_second", "wall_seconds", "cpu_seconds")
WARMUP = 0.1                  # of the steps: the learning rate's
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "numpy")


def article(options: argparse.Namespace, seed: int, model: Path) -> dict[str, Any]:
    name = f"article-{seed}"
    result = options.folder / f"{name}.json"
    steps = options.epochs * -(-options.rows // GLOBAL_BATCH)
    start, variables = common.launcher(options.python, options.ranks)
    command = [*start, common.BENCH / "article.py", "--model", model,
               "--data", options.folder / "data", "--epochs", options.epochs, "--learning-rate", options.learning_rate,
               "--warmup-steps", round(WARMUP * steps), "--seed", seed, "--untimed-steps", options.untimed_steps,
               "--result", result]
    command += ["--decay"] if options.article_decay else []
    took = common.run(command, options.folder / f"{name}.log", options.timeout, **environment(options), **variables)
    return {**took, **json.loads(result.read_text())}


def debzero(options: argparse.Namespace, seed: int, model: Path) -> dict[str, Any]:
    job = {
        "model": str(model),
        "data": {"dataset": str(options.folder / "data"), "text": ["sentence1", "sentence2"], "label": "label",
                 "max_length": MAX_LENGTH},
        "train": {"epochs": options.epochs, "global_batch": GLOBAL_BATCH, "learning_rate": options.learning_rate,
                  "warmup": WARMUP, "seed": seed, "log_every": min(10, options.untimed_steps)},
        "zero": {"stage": options.stage if options.stage == "none" else int(options.stage)},
        "ranks": options.ranks,
    }
    done = common.debzero(options.python, options.folder, f"debzero-{seed}", job, options.timeout,
                          **environment(options))
    score, report, metrics = f"{EVALUATION}accuracy", done["report"], done["metrics"]
    speed = common.steady(metrics, options.rows, GLOBAL_BATCH, options.untimed_steps)["samples_per_second"]
    return {"wall_seconds": done["wall_seconds"], "cpu_seconds": done["cpu_seconds"], "steps": report["steps"],
            "samples_per_second": speed, "accuracy": report["accuracy"],
            "accuracies": [line[score] for line in metrics if score in line],
            "micro_batch": report["micro_batch"], "peak_memory_bytes": report["peak_memory_bytes"]}


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The same for both sides; LOCAL_SIZE spares DeepSpeed a question to numactl."""
    return {"OMP_NUM_THREADS": str(options.threads), "LOCAL_SIZE": str(options.ranks), "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": ""}


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A run of each side for every seed. The sides take turns to begin, so that a busier minute hits both."""
    pairs.write_pairs(options.folder / "data", options.rows, options.held_out, options.shape["vocab_size"])
    runs = []
    for number, seed in enumerate(options.seeds):
        model = options.folder / f"model-{seed}"
        common.run([options.python, common.BENCH / "pairs.py", "model", model, "--shape", json.dumps(options.shape),
                    "--seed", seed],
                   options.folder / "model.log", options.timeout)
        sides = [("article", article), ("debzero", debzero)]
        for side, train in sides if number % 2 == 0 else sides[::-1]:
            run = {"side": side, "seed": seed, **train(options, seed, model)}
            runs.append(run)
            print(f"seed {seed}  {side}  {run['samples_per_second']:7.1f} samples/s  accuracy {run['accuracy']:.4f}  "
                  f"{run['wall_seconds']:6.1f} s in all", flush=True)
    return runs


def judge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds of both sides, and of the ratios within each seed."""
    def of(side: str, key: str) -> list[float]:
        return [run[key] for run in sorted(runs, key=lambda run: run["seed"]) if run["side"] == side]

    def ratios(key: str, over: str, under: str) -> list[float]:
        return [a / b for a, b in zip(of(over, key), of(under, key))]

    speeds, walls = ratios("samples_per_second", "debzero", "article"), ratios("wall_seconds", "article", "debzero")
    accuracy = {side: statistics.median(of(side, "accuracy")) for side in ("article", "debzero")}
    cpus = ratios("cpu_seconds", "article", "debzero")
    return {"speed_ratio": statistics.median(speeds), "speed_ratios": speeds, "wall_ratio": statistics.median(walls),
            "wall_ratios": walls, "cpu_ratio": statistics.median(cpus), "cpu_ratios": cpus, "accuracy": accuracy,
            "fast_enough": statistics.median(speeds) >= 2.0,
            "accurate_enough": accuracy["debzero"] >= accuracy["article"]}


def text(runs: list[dict[str, Any]], verdict: dict[str, Any], majority: float) -> str:
    rows: list[list[object]] = [["", "samples/s", "run, s", "CPU, s", "accuracy", "over the seeds"]]
    for side in ("article", "debzero"):
        mine = [run for run in runs if run["side"] == side]
        rows.append([side, *(f"{statistics.median(run[key] for run in mine):.1f}" for key in SHOWN),
                     f"{verdict['accuracy'][side]:.4f}", " ".join(f"{run['accuracy']:.4f}" for run in mine)])
    ratios = [f"{verdict[key]:.2f}" for key in ("speed_ratio", "wall_ratio", "cpu_ratio")]
    rows.append(["ratio", *ratios, "", f"(majority-class baseline: {majority:.4f})"])
    return common.table(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=common.ROOT / ".cache" / "bench" / "train",
                        help="where everything is written")
    parser.add_argument("--python", default=sys.executable,
                        help="the interpreter with torch and DeepSpeed (default: this one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ranks", type=int, choices=[1, 2], default=2,
                        help="processes on each side; one is a rehearsal, in which the tutorial's batch is 32, not 64")
    parser.add_argument("--rows", type=int, default=pairs.TRAIN)
    parser.add_argument("--held-out", type=int, default=pairs.HELD_OUT)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--stage", choices=["none", "1", "2", "3"], default="2",
                        help="debzero's ZeRO stage (default: 2, the tutorial's)")
    parser.add_argument("--article-decay", action="store_true",
                        help="let the tutorial's learning rate decay too (WarmupDecayLR)")
    parser.add_argument("--threads", type=int, default=1, help="OpenMP threads of each rank, on both sides")
    parser.add_argument("--untimed-steps", type=int, default=10, help="optimizer steps before the clock starts")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one run may take")
    parser.add_argument("--tiny", action="store_true",
                        help="a smoke test: a tiny model, 160 rows, one seed; its numbers mean nothing")
    options = parser.parse_args()
    options.shape, options.folder = SHAPE, options.folder.absolute()
    if options.tiny:
        options.shape, options.seeds, options.rows, options.held_out = TINY, options.seeds[:1], 160, 40
        options.epochs, options.untimed_steps = 2, 2
    options.folder.mkdir(parents=True, exist_ok=True)

    print(__doc__.split("\n\n")[1], f"\nOn {common.processor()}, {options.threads} OpenMP thread(s) a rank.\n",
          flush=True)
    started = time.time()
    runs = run_all(options)
    verdict = judge(runs)
    labels = [pair.label for pair in pairs.Language(options.shape["vocab_size"]).pairs(options.held_out,
                                                                                       "validation 0")]
    majority = max(labels.count(0), labels.count(1)) / len(labels)
    settings = {key: value if isinstance(value, (int, float, str, list, dict)) else str(value)
                for key, value in vars(options).items()}
    results = options.folder / "results.json"
    write_json(results, {"verdict": verdict, "runs": runs, "majority_accuracy": majority, "settings": settings,
                         "host": common.processor(), "versions": common.versions(options.python, *PACKAGES),
                         "seconds": time.time() - started})
    print(f"\n{text(runs, verdict, majority)}\n\nraw results: {results}")
    return 0 if options.tiny or verdict["fast_enough"] and verdict["accurate_enough"] else 1


if __name__ == "__main__":
    sys.exit(main())
