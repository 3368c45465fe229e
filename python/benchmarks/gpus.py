#!/usr/bin/env python3
"""`make bench-gpus`: debzero's stages beside other programs, on one GPU and on several, in one series.

    gpus.py --results gpus.json                        # on one GPU and on all of this host
    gpus.py --results gpus.json --ranks 1 2 4 --minutes 25    # start no more after so long; a rerun continues
    gpus.py --results gpus.json --only bert-large-uncased --contestants none ddp zero2    # a part
    gpus.py --render gpus.json ...                     # the pages, gpus.html and gpus.md beside it

BERT-Large (classification, 128 tokens, micro-batch 64), GPT-2 Medium (512 tokens, 16) and GPT-2 XL (512, 8), with their
published sizes and random weights, bf16, without accumulation: with more ranks the global batch grows. Models divided
among the ranks train on the same global batch, a pipeline in micro-batches of a quarter. BERT's rows have
the lengths of MRPC's pairs and are padded to 128, or bucketed: to the longest of their batch. GPT-2's samples are whole
blocks, so nothing is padded.

Each cell is a process group of its own with a time limit. It warms up, and its speed is the median of three windows;
with --repeats it is measured so often, and the median of all windows counts. Rounds go through all cells before any is
repeated. Results are written after each. A cell that fails or does not end is kept with its reason, and not tried again
without --retry. `--quick` rehearses all of it with tiny models on CPU ranks: its numbers mean nothing.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import common
import gpus_page
import memory
import pairs

from debzero.base.files import read_json, write_json
from debzero.job.schema import Job
from debzero.measure.run import claim, measure
from debzero.model import flops

WINDOWS = 3
EPOCH = 30        # steps in an epoch of the bucketed rows: each window is one, so that all hold the same lengths


class Kind(NamedTuple):
    """A model, what it is trained on, and its samples in a micro-batch."""

    task: str
    length: int
    micro: int


class Steps(NamedTuple):
    """Optimizer steps before the clock starts, and in each window."""

    warmup: int
    window: int


KINDS = {"bert-large-uncased": Kind("classification", 128, 64), "gpt2-medium": Kind("causal-lm", 512, 16),
         "gpt2-xl": Kind("causal-lm", 512, 8)}
TINY = {name: Kind(kind.task, 32, 2) for name, kind in KINDS.items()}
PADDED, BUCKETED = Steps(20, 10), Steps(3 * EPOCH, EPOCH)  # a width is recorded when it comes for the second time
ZERO: dict[str, dict[str, Any]] = {
    "none": {"stage": "none"}, **{
        f"{name}{stage}{suffix}": {"stage": stage, "engine": engine, **more} for name, engine, suffix, more in (
            ("zero", "deepspeed", "", {"favour": "memory"}), ("zero", "deepspeed", "-speed", {"favour": "speed"}),
            ("native", "native", "", {})) for stage in (1, 2, 3)}}
DIVIDED: dict[str, dict[str, int]] = {"pipeline2": {"pipeline": 2}, "tensor2": {"tensor": 2}}
OURS = [*ZERO, *DIVIDED]
OTHERS = ["ddp", "fsdp2", "trainer2", "trainer3"]
ON_ONE = ["none", "ddp", "trainer"]  # what one GPU runs: with one rank there is nothing to shard
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "triton")


class Cell(NamedTuple):
    ranks: int
    model: str
    padding: str       # padded or bucketed
    contestant: str

    @property
    def name(self) -> str:
        return "/".join(map(str, self))


def cells(options: argparse.Namespace) -> list[Cell]:
    """What is asked for, one model after the other."""
    found = []
    for model in (name for name in KINDS if name in options.only):
        for ranks in options.ranks:
            several = [*OURS, *OTHERS] if ranks > 1 else ON_ONE
            found += [Cell(ranks, model, "padded", who) for who in several if who in options.contestants]
            if KINDS[model].task == "classification":
                found += [Cell(ranks, model, "bucketed", who) for who in several
                          if who in OURS and who in options.contestants]
    return found


def micro_batch(micro: int, divided: dict[str, int]) -> int:
    """Of a contestant; a pipeline gets smaller ones, which keep its stages busy."""
    return max(1, micro // (4 if "pipeline" in divided else 1))


def left_out(contestant: str) -> Optional[str]:
    """Why a contestant cannot run with the installed torch."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return "fully_shard needs torch 2.6 or later" if contestant == "fsdp2" and release < (2, 6) else None


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: series on different GPUs of a host may run side by side."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


class Series:
    """The cells' results, kept as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises SystemExit where the results are of another host, other versions or other settings."""
        import torch

        self.options, self.scratch = options, options.scratch.absolute()
        self.gpus = [] if options.quick else visible_gpus()
        before = read_json(options.results)
        self.found: dict[str, Any] = before.get("cells", {})
        self.facts = {"gpu": torch.cuda.get_device_name(0) if self.gpus else "none", "gpus": len(self.gpus),
                      "quick": options.quick,
                      "host": common.processor(), "versions": common.versions(sys.executable, *PACKAGES),
                      "windows": WINDOWS}
        other = [name for name, value in self.facts.items() if before and before["facts"].get(name) != value]
        if other:
            raise SystemExit(f"{options.results}: its cells differ from this call in {', '.join(other)}: name another "
                             "file")
        self.kinds = TINY if options.quick else KINDS
        self.ready = set[tuple[str, int]]()

    def todo(self) -> list[Cell]:
        """A cell for each run that is lacking: a round through all before any is repeated."""
        wanted = [cell for cell in cells(self.options) if self.options.retry or not self.has_failed(cell)]
        return [cell for count in range(self.options.repeats) for cell in wanted if self.runs(cell) <= count]

    def runs(self, cell: Cell) -> int:
        return len(self.found.get(cell.name, {}).get("runs", []))

    def has_failed(self, cell: Cell) -> bool:
        return bool({"failed", "left_out"} & set(self.found.get(cell.name, {})))

    def run(self, until: float) -> int:
        """Measure what is left, and start nothing after `until` (of time.monotonic); the number of runs that are then
        left."""
        todo, tried = self.todo(), set[Cell]()
        for number, cell in enumerate(todo):
            if time.monotonic() > until:
                return len(todo) - number
            if cell not in tried or not self.has_failed(cell):
                tried.add(cell)
                self.keep(cell, self.measured(cell))
        return 0

    def measured(self, cell: Cell) -> dict[str, Any]:
        """One run of a cell, or why there is none."""
        started = time.monotonic()
        reason = left_out(cell.contestant)
        run: dict[str, Any]
        try:
            if reason:
                run = {"left_out": reason}
            else:
                self.prepare(cell)
                run = (self.debzero if cell.contestant in OURS else self.other)(cell)
        except common.Failed as failure:
            run = {"failed": str(failure)}
        return {**run, "seconds": round(time.monotonic() - started, 1)}

    def keep(self, cell: Cell, run: dict[str, Any]) -> None:
        row = {key: value for key, value in self.found.get(cell.name, {}).items() if key == "runs"}
        if "windows" in run:
            row.setdefault("runs", []).append(run)
        else:
            row.update(run)
        self.found[cell.name] = row
        write_json(self.options.results, {"facts": self.facts, "cells": self.found})
        shown = (f"{gpus_page.speed(row):.1f} samples/s" if "runs" in row
                 else f"left out: {run['left_out']}" if "left_out" in run
                 else f"FAILED: {(run['failed'].splitlines() or ['?'])[-1]}")
        print(f"{cell.name}: {shown} ({run['seconds']:.0f} s)", flush=True)

    def data(self, cell: Cell) -> Path:
        return self.scratch / f"{cell.model}-{cell.ranks}"

    def steps(self, cell: Cell) -> Steps:
        if self.options.quick:
            return Steps(2, 2)
        return BUCKETED if cell.padding == "bucketed" else PADDED

    def prepare(self, cell: Cell) -> None:
        """The model's folder, and the rows for so many ranks."""
        if (cell.model, cell.ranks) in self.ready:
            return
        memory.make_model(cell.model, self.scratch, self.options.quick)
        kind, folder = self.kinds[cell.model], self.data(cell)
        folder.mkdir(parents=True, exist_ok=True)
        epoch = 8 if self.options.quick else EPOCH if kind.task == "classification" else sum(PADDED) + 2 * PADDED.window
        for name, rows in (("train", epoch * kind.micro * cell.ranks), ("validation", 2 * cell.ranks)):
            dice = random.Random(name)
            lines = [f"{' '.join(self.words(kind, dice))},w{row % 2}" for row in range(rows)]
            (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        self.ready.add((cell.model, cell.ranks))

    @staticmethod
    def words(kind: Kind, dice: random.Random) -> list[str]:
        """A row's: for a classifier as many as a pair of MRPC's has word pieces, else a whole block."""
        count = kind.length
        if kind.task == "classification":
            drawn = round(dice.gammavariate((pairs.MEAN / pairs.SPREAD) ** 2, pairs.SPREAD**2 / pairs.MEAN))
            count = min(kind.length, pairs.LONGEST, max(pairs.SHORTEST, drawn))
        return [f"w{dice.randrange(100)}" for _ in range(count)]

    def job(self, cell: Cell) -> Job:
        kind, steps = self.kinds[cell.model], self.steps(cell)
        count = steps.warmup + WINDOWS * steps.window
        padding = "longest" if cell.padding == "bucketed" else "max_length"
        divided = DIVIDED.get(cell.contestant, {})
        return Job.model_validate({
            "model": str(self.scratch / cell.model), "task": kind.task,
            "data": {"dataset": str(self.data(cell)), "max_length": kind.length, "padding": padding},
            "train": {"epochs": count, "max_steps": count, "global_batch": kind.micro * cell.ranks,
                      "micro_batch": micro_batch(kind.micro, divided),
                      "log_every": steps.window,
                      "precision": "fp32" if self.options.quick else "bf16"},
            "zero": ZERO.get(cell.contestant, ZERO["none"]), "parallel": divided, "ranks": cell.ranks,
            "checkpoint": {"minutes": 10**6},
            "output": str(self.scratch / "runs" / cell.name.replace("/", "-") / "out")})

    def environment(self, cell: Cell) -> dict[str, str]:
        """What both sides get: so many GPUs."""
        if self.options.quick:
            return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(cell.ranks),
                    "OMP_NUM_THREADS": "1"}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[:cell.ranks])}

    def debzero(self, cell: Cell) -> dict[str, Any]:
        job, steps = self.job(cell), self.steps(cell)
        folder = Path(job.output).parent
        os.environ.update({**common.OFFLINE, **self.environment(cell)})
        run = measure(job, folder, steps.warmup, self.options.limit)
        if run.reason:
            log = folder / "train.log"
            end = log.read_text(errors="replace").splitlines()[-25:] if log.is_file() else []
            raise common.Failed("\n".join([*end, run.reason]))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        work = [line["tflops"] for line in lines if "tflops" in line and line["step"] > steps.warmup]
        return {"windows": [segment.samples / segment.seconds for segment in run.segments],
                "memory_bytes": list(run.memory_bytes), **self.peak_share(cell, sum(work) / len(work))}

    def other(self, cell: Cell) -> dict[str, Any]:
        kind, steps = self.kinds[cell.model], self.steps(cell)
        start, variables = common.launcher(sys.executable, cell.ranks, self.gpus[:cell.ranks])
        folder = self.scratch / "runs" / cell.name.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = folder / "result.json"
        common.run([*start, common.BENCH / "contenders.py", cell.contestant, "--model", self.scratch / cell.model,
                    "--task", kind.task, "--data", self.data(cell), "--length", kind.length, "--micro-batch",
                    kind.micro, "--warmup", steps.warmup, "--window", steps.window, "--windows", WINDOWS, "--result",
                    result], folder / "log", self.options.limit, **variables, **self.environment(cell))
        run: dict[str, Any] = json.loads(result.read_text())
        config = SimpleNamespace(**read_json(self.scratch / cell.model / "config.json"))
        sample = flops.per_sample(config, kind.length, kind.task)
        return {**run, **self.peak_share(cell, gpus_page.median(run["windows"]) / cell.ranks * sample / 1e12)}

    def peak_share(self, cell: Cell, tflops: float) -> dict[str, Any]:
        """`tflops`: of one rank, padding counted."""
        peak = flops.peak(self.facts["gpu"], "bf16")
        return {"tflops": round(tflops, 3), "peak_share": tflops * 1e12 / peak if peak else None}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.ROOT / ".cache" / "bench" / "gpus.json",
                        help="the JSON to write, and to continue")
    parser.add_argument("--scratch", type=Path, default=common.ROOT / ".cache" / "bench" / "gpus",
                        help="a folder with 10 GB of room, for models, rows and logs")
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of ranks, with a GPU each (default: 1 and all)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="MODEL", help=" ".join(KINDS))
    everybody = list(dict.fromkeys([*OURS, *OTHERS, *ON_ONE]))
    parser.add_argument("--contestants", nargs="+", choices=everybody, default=everybody, metavar="NAME",
                        help=" ".join(everybody))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each cell (default: 3)")
    parser.add_argument("--limit", type=float, default=180, help="seconds that a run may take (default: 180)")
    parser.add_argument("--minutes", type=float, default=10**6, help="start no run after so many minutes")
    parser.add_argument("--retry", action="store_true", help="try again what has failed")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on CPU ranks")
    parser.add_argument("--render", type=Path, nargs="+", metavar="JSON", help="only write the pages of these results")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.render:
        for file in options.render:
            if not {"facts", "cells"} <= set(read_json(file)):
                print(f"{file}: no results of gpus.py; give the JSON that --results named", file=sys.stderr)
                return 2
            print(*gpus_page.write(file), sep="\n")
        return 0
    if options.quick:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        options.ranks = options.ranks or [1, 2]
    else:
        count = len(visible_gpus())
        options.ranks = options.ranks or sorted({1, count})
        if max(options.ranks) > count:
            print(f"--ranks {max(options.ranks)}: this host has {count} GPUs; --quick rehearses it on CPU ranks",
                  file=sys.stderr)
            return 2
    until = time.monotonic() + 60 * options.minutes
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    claim(options.scratch)
    series = Series(options)
    left = series.run(until)
    print("\n" + gpus_page.text(read_json(options.results)))
    print(f"\nraw results: {options.results}" + (f"; {left} runs are left: start it again" if left else ""))
    return 1 if any("failed" in row for row in series.found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
