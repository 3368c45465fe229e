#!/usr/bin/env python3
"""`make bench-losses`: whether every stage and engine trains as plain fp32 DDP does, and a resumed run as a whole one.

    losses.py --results losses.json                  # with a rank on each GPU; a rerun continues
    losses.py --results losses.json --only zero      # the runs whose names begin so, beside what they are compared with

A small BERT gets a new head and is trained for 100 steps of two micro-batches, without dropout: as plain DDP in fp32
and without compiled code, the reference; then each stage and engine, in fp32 and bf16, with compiled layers (and, where
there is no DeepSpeed, recorded as CUDA graphs) and without. `resumed` runs are stopped by SIGTERM in the middle and
started again with the other setting of train.compile.

Means of the loss over 10 steps may differ from the reference's by 0.001 in fp32 and by 0.05 in bf16; those of a resumed
run likewise from the same run that was not stopped. Exit code 1: some differ by more, or a run failed or fell out of
its CUDA graphs. `--quick` rehearses it on two CPU ranks, in fp32 alone.
"""
from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import common
import memory
import psutil
import yaml
from gpus import PACKAGES, ZERO, visible_gpus

from debzero.base.files import read_json, write_json
from debzero.measure.run import kill_tree

STEPS, MEAN, ACCUMULATION = 100, 10, 2
EVALUATION, STOP_AFTER = 50, 45  # steps: the evaluation gives the time to stop a run of fast steps
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of the loss
COMPILE = {"compiled": "auto", "eager": "never"}
GAVE_UP = "runs without CUDA graphs"
MODEL = {"type": "bert", "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 256, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RATE = 3e-3
RESUMED = ("none", "zero2", "zero3", "native1", "native2", "native3")


class Run(NamedTuple):
    contestant: str   # of gpus.ZERO
    precision: str
    code: str         # compiled or eager; of a resumed run: until it is stopped
    resumed: bool = False

    @property
    def name(self) -> str:
        return "-".join([*self[:3], *(["resumed"] if self.resumed else [])])

    @property
    def compared(self) -> Run:
        """The run that it has to equal."""
        return self._replace(resumed=False) if self.resumed else REFERENCE


REFERENCE = Run("none", "fp32", "eager")


def runs(quick: bool) -> list[Run]:
    """The reference first. DeepSpeed's stage 3 never has compiled code."""
    found = [REFERENCE]
    for precision in ("fp32",) if quick else TOLERANCE:
        for contestant in ZERO:
            for code in ("eager",) if contestant.startswith("zero3") else COMPILE:
                plain = Run(contestant, precision, code)
                found += [plain] * (plain != REFERENCE)
                found += [plain._replace(resumed=True)] * (contestant in RESUMED)
    return found


class Losses:
    """The runs' losses, kept as they come."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.options, self.folder, self.writing = options, options.scratch.absolute(), Lock()
        self.data = self.folder / "data"
        before = read_json(options.results)
        gpus = 0 if options.quick else torch.cuda.device_count()
        self.ranks = options.ranks or (2 if options.quick else gpus)
        self.facts = {"gpu": torch.cuda.get_device_name(0) if gpus else "none", "ranks": self.ranks,
                      "quick": options.quick, "versions": common.versions(sys.executable, *PACKAGES)}
        if before and before["facts"] != self.facts:
            raise SystemExit(f"{options.results}: its runs are of another host, other versions or other ranks: name "
                             "another file")
        self.found: dict[str, dict[str, Any]] = before.get("runs", {})

    def prepare(self) -> None:
        """A model, two classes that show in three words, and lengths that give several widths."""
        import torch

        self.data.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(7)
        memory.save_model(MODEL, "AutoModel", self.folder / "model")
        dice = random.Random(7)
        words = [f"w{number}" for number in range(100)]
        for name, count in (("train", 25 * self.batch), ("validation", 16 if self.options.quick else 4096)):
            lines = []
            for _ in range(count):
                label = dice.randrange(2)
                text = [*dice.choices(words[10:], k=dice.randint(4, 28)),
                        *dice.choices(words[5 * label:5 * label + 5], k=3)]
                lines.append(f"{' '.join(dice.sample(text, len(text)))},c{label}")
            (self.data / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")

    @property
    def batch(self) -> int:
        return (4 if self.options.quick else 16) * ACCUMULATION * self.ranks

    def job(self, run: Run, code: str) -> dict[str, Any]:
        return {"model": str(self.folder / "model"), "task": "classification",
                "data": {"dataset": str(self.data), "max_length": 32},
                "train": {"epochs": STEPS, "max_steps": STEPS, "global_batch": self.batch,
                          "micro_batch": self.batch // ACCUMULATION // self.ranks, "learning_rate": RATE,
                          "log_every": 1, "evaluate_every": EVALUATION, "precision": run.precision,
                          "compile": COMPILE[code]},
                "zero": ZERO[run.contestant], "ranks": self.ranks, "checkpoint": {"minutes": 1000}}

    def train(self, run: Run) -> dict[str, Any]:
        """The losses of a run, one for each step, or why there are none."""
        codes, started = [run.code], time.monotonic()
        try:
            if run.resumed:
                codes.append("eager" if run.code == "compiled" else "compiled")
                self.stopped(run)
            done = common.debzero(sys.executable, self.folder, run.name, self.job(run, codes[-1]), self.options.limit,
                                  again=not run.resumed)
            losses = {line["step"]: line["loss"] for line in done["metrics"] if "loss" in line}
            log = (self.folder / f"{run.name}.log").read_text(errors="replace")
            if sorted(losses) != list(range(1, STEPS + 1)):
                raise common.Failed(f"{len(losses)} losses, not {STEPS}")
            if GAVE_UP in log:
                raise common.Failed(next(line for line in log.splitlines() if GAVE_UP in line))
            if run.resumed and "resuming from step" not in log:
                raise common.Failed("it began anew in place of resuming")
        except common.Failed as failure:
            return {"failed": str(failure)}
        return {"losses": [losses[step] for step in sorted(losses)], "code": codes,
                "seconds": round(time.monotonic() - started, 1)}

    def stopped(self, run: Run) -> None:
        """Start it, and stop it in the middle. Raises Failed where it ends otherwise."""
        output, job = self.folder / run.name, self.folder / f"{run.name}.yml"
        job.write_text(yaml.safe_dump({**self.job(run, run.code), "output": str(output)}))
        log = self.folder / f"{run.name}-stopped.log"
        process = self.start(job, log)
        try:
            until = time.monotonic() + self.options.limit
            while (process.poll() is None and time.monotonic() < until
                   and read_json(output / "status.json").get("step", 0) < STOP_AFTER):
                time.sleep(0.01)
            process.terminate()
            code = process.wait(self.options.limit)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            code = "it does not stop"
        finally:
            if process.poll() is None:
                kill_tree(process)
        if code != 143:
            raise common.Failed(f"{log.read_text(errors='replace')[-2000:]}\nstopped after {STOP_AFTER} steps: {code}, "
                                "not 143")

    @staticmethod
    def start(job: Path, log: Path) -> Any:
        with open(log, "w", encoding="utf-8") as file:
            return psutil.Popen([sys.executable, "-m", "debzero", "train", str(job), "--again"], stdout=file,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                env=common.variables_of(sys.executable))

    def keep(self, run: Run) -> None:
        result = self.train(run)
        with self.writing:
            self.found[run.name] = result
            write_json(self.options.results, {"facts": self.facts, "runs": self.found})
            took = f"trained in {result['seconds']:.0f} s" if "losses" in result else "FAILED"
            print(f"{run.name}: {took}", flush=True)

    def difference(self, run: Run) -> float:
        """The largest between the means of the loss over MEAN steps."""
        ours, theirs = (self.found[each.name]["losses"] for each in (run, run.compared))
        return max(abs(sum(ours[at:at + MEAN]) - sum(theirs[at:at + MEAN])) / MEAN
                   for at in range(0, STEPS, MEAN))

    def verdict(self, run: Run) -> tuple[bool, str]:
        missing = [each for each in (REFERENCE, run, run.compared) if "losses" not in self.found.get(each.name, {})]
        if missing:
            reason = self.found.get(missing[0].name, {}).get("failed", "missing")
            return False, f"{missing[0].name}: {(reason.splitlines() or ['?'])[-1]}"
        losses = self.found[REFERENCE.name]["losses"]
        if sum(losses[-MEAN:]) > sum(losses[:MEAN]) / 2:
            return False, "the reference has not learned, so nothing shows"
        off, most = self.difference(run), TOLERANCE[run.precision]
        return off <= most, f"{off:.6f} from {run.compared.name}, {most:g} allowed"

    def line(self, run: Run) -> str:
        good, text = self.verdict(run)
        return f"{run.name:<32}{'agrees' if good else 'DIFFERS':<9}{text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.ROOT / ".cache" / "bench" / "losses.json",
                        help="the JSON to write, and to continue")
    parser.add_argument("--scratch", type=Path, default=common.ROOT / ".cache" / "bench" / "losses",
                        help="a folder with 40 GB of room")
    parser.add_argument("--ranks", type=int, help="default: one on each GPU")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runs whose names begin with one of these")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--limit", type=float, default=240, help="seconds that a run may take (default: 240)")
    parser.add_argument("--minutes", type=float, default=10**6, help="start no run after so many minutes")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on CPU ranks")
    options = parser.parse_args()
    names = [run.name for run in runs(options.quick)]
    for part in options.only or ():
        if not any(name.startswith(part) for name in names):
            parser.error(f"argument --only: no run begins with {part!r} (the runs: {', '.join(names)})")
    if not options.quick and not visible_gpus():
        parser.error("this host has no GPU; --quick rehearses it on CPU ranks")
    if options.quick:
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", LOCAL_SIZE=str(options.ranks or 2),
                          OMP_NUM_THREADS="1")
    until = time.monotonic() + 60 * options.minutes
    options.results.parent.mkdir(parents=True, exist_ok=True)
    losses = Losses(options)
    losses.prepare()
    chosen = [run for run in runs(options.quick)
              if not options.only or any(run.name.startswith(part) for part in options.only)]
    chosen = list(dict.fromkeys([REFERENCE, *(part for run in chosen for part in (run.compared, run))]))
    todo = [run for run in chosen if "losses" not in losses.found.get(run.name, {})]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda run: losses.keep(run) if time.monotonic() < until else None, todo))
    judged = [run for run in chosen if run != REFERENCE]
    verdicts = [losses.verdict(run)[0] for run in judged]
    print("\n" + "\n".join(losses.line(run) for run in judged))
    print(f"\n{sum(verdicts)} of {len(verdicts)} runs agree; raw results: {options.results}")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
