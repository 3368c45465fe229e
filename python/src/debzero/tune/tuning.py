"""`debzero tune`: the settings with the highest samples/s that fit, found by a few short trials and written into the
job file.

The global batch stays exactly what it is. It is to find what a sweep over all settings would, in a third of the trials:
`debzero plan` tells where to begin (the largest micro-batch that fits), speed hardly ever has more than one hill along
the micro-batch, and a setting that loses with its best-looking micro-batch is not tried with others. """
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem
from debzero.base.files import read_json, rewrite_text, write_json
from debzero.base.text import rate_text, size_text
from debzero.check import checks
from debzero.job.batch import divisors
from debzero.measure.derive import derive
from debzero.measure.facts import command_line, host_facts, identity, installed
from debzero.measure.run import MENDABLE, claim, measure, per_second
from debzero.plan.largest_micro import predicted
from debzero.resolve.micro_batch import with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import SHARDINGS, Sharding
from debzero.run.folder import now
from debzero.tune.job_file import check_writable, rewritten
from debzero.tune.search import Unfit, Way, allowed, search


def ways(resolved: ResolvedJob, file: Path, dimensions: list[str]) -> list[Way]:
    """What is to be tried: the job's own way and, along the `dimensions`, others. Ways that cannot fit are left out
    where GPUs tell."""
    zero, sizes = resolved.job.zero, tuple(divisors(resolved.batch.total // resolved.batch.ranks))
    own = resolved.sharding
    choices = [c for c in SHARDINGS if (c.stage == own.stage or "stage" in dimensions)
               and ((c.offload_optimizer, c.offload_param) == (own.offload_optimizer, own.offload_param)
                    or "offload" in dimensions)
               and ("nvme" not in (c.offload_optimizer, c.offload_param) or zero.nvme_path)]
    made = []
    for sharding in choices if own in choices else [own, *choices]:
        for checkpointing in (False, True) if "checkpointing" in dimensions else (resolved.job.train.gradient_checkpointing,):
            first = predicted(_as(resolved, sharding, checkpointing, resolved.batch.micro), file) if resolved.host.gpus else None
            if first is None:
                first = max(size for size in sizes if size <= resolved.batch.micro)
            if first or sharding == own:
                made.append(Way(sharding, checkpointing, sizes, first or 1))
    return made


def _as(resolved: ResolvedJob, sharding: Sharding, checkpointing: bool, micro: int) -> ResolvedJob:
    """The plan with these settings."""
    made = with_micro(resolved, micro)
    job = made.job.model_copy(update={
        "train": made.job.train.model_copy(update={"gradient_checkpointing": checkpointing}),
        "zero": sharding.in_section(made.job.zero)})
    return ResolvedJob(job, made.batch, made.precision, made.why, sharding.stage, None, made.host)


def tune(options: argparse.Namespace) -> int:
    """The command. Exit code: 0 where something runs, else 1."""
    resolved = checks.check(options.job, options.ranks)
    if resolved.deepspeed is not None:
        raise InputError([Problem(str(options.job), "deepspeed",
                                  "the job's own DeepSpeed JSON decides the settings that would be tuned",
                                  "put what it says into the job's `train:` and `zero:`, and take the key out")])
    if resolved.shares_gpus:
        raise InputError([Problem(str(options.job), "--ranks",
                                  f"{resolved.batch.ranks} ranks need as many GPUs, and there are fewer: their "
                                  "speed would say nothing", f"use --ranks {resolved.host.gpus}")])
    if not options.dry_run:
        check_writable(options.job)
    folder = Path(resolved.job.output + "-tune").absolute()
    claim(folder)
    return Tuning(options, resolved, folder).run()


class Tuning:
    """One search and its folder: tune.json, runs/ with each trial's log, data/. An interrupted search goes on with its
    trials."""

    def __init__(self, options: argparse.Namespace, resolved: ResolvedJob, folder: Path) -> None:
        self.options, self.resolved, self.folder = options, resolved, folder
        self.ways = ways(resolved, options.job, options.search)
        self.sweep = sum(len(way.sizes) for way in self.ways)
        self.trials: list[dict[str, Any]] = []
        settings = {"ranks": resolved.batch.ranks, **{key: getattr(options, key) for key in ("steps", "warmup", "limit")}}
        host, versions = host_facts(resolved, options.name), installed()
        self.made: dict[str, Any] = {
            "ok": False, "complete": False, "identity": identity(resolved, settings, host, versions),
            "command": command_line(), "job": str(options.job), "settings": settings, "host": host,
            "versions": versions, "sweep": self.sweep, "trials": self.trials, "chosen": None, "written": False}
        before = read_json(folder / "tune.json")
        goes_on = before.get("identity") == self.made["identity"] and not before["complete"]
        self.seen = {(trial["way"], trial["micro_batch"]): trial for trial in (before["trials"] if goes_on else ())
                     if trial["kind"] not in MENDABLE}

    def run(self) -> int:
        self._say(f"{self.resolved.batch}; {allowed(self.ways)} trials of the {self.sweep} that a sweep takes")
        found = search(self.ways, self._trial)
        made = self.made
        if self.options.exhaustive:
            count = len(self.trials)
            best = self._rest(found)
            if found and best:
                share = found[2] / best[2]
                made["search"] = {**self._lines(*found[:2]), "samples_per_second": found[2], "trials": count,
                                  "share_of_best": share}
                self._say(f"the search: {found[0]}, micro-batch {found[1]} after {count} trials, {share:.1%} of the "
                          f"best of {self.sweep}")
            found = best
        if found:
            way, micro, speed = found
            lines = self._lines(way, micro)
            made.update(chosen={**lines, "samples_per_second": speed}, written=not self.options.dry_run)
        if found and not self.options.dry_run:
            rewrite_text(self.options.job, rewritten(self.options.job.read_text(encoding="utf-8"), lines))
        made.update(ok=found is not None, complete=True)
        self._write()
        if self.options.json:
            print(json.dumps(made, indent=2))
        if not found:
            self._say("nothing runs: see the reasons above")
            return 1
        batch = with_micro(self.resolved, micro).batch
        self._say(f"\n{way}, {batch}: {rate_text(speed)} samples/s",
                  *(f"  {key}: {value}" for key, value in lines.items()),
                  f"{'not written (--dry-run)' if self.options.dry_run else f'written into {self.options.job}'}; "
                  f"all trials are in {self.folder / 'tune.json'}")
        return 0

    def _lines(self, way: Way, micro: int) -> dict[str, Any]:
        """What the job file is to say: the micro-batch, and what else was searched for."""
        lines: dict[str, Any] = {"train.micro_batch": micro}
        if self.options.ranks:
            lines["ranks"] = self.options.ranks
        if "stage" in self.options.search:
            lines["zero.stage"] = way.sharding.stage_word
        if "offload" in self.options.search:
            lines.update({"zero.offload_optimizer": way.sharding.offload_optimizer,
                          "zero.offload_param": way.sharding.offload_param})
        if "checkpointing" in self.options.search:
            lines["train.gradient_checkpointing"] = way.checkpointing
        return lines

    def _rest(self, found: Optional[tuple[Way, int, float]]) -> Optional[tuple[Way, int, float]]:
        """The best of all, when what the search has left out is tried as well."""
        tried = {(trial["way"], trial["micro_batch"]): trial["samples_per_second"] for trial in self.trials}
        best = found
        for way in self.ways:
            for micro in way.sizes:
                try:
                    speed = tried[str(way), micro] if (str(way), micro) in tried else self._trial(way, micro)
                except Unfit:
                    break
                if speed is not None and (best is None or speed > best[2]):
                    best = way, micro, speed
        return best

    def _trial(self, way: Way, micro: int) -> Optional[float]:
        before = self.seen.get((str(way), micro))
        made = before or self._measured(way, micro)
        took = "measured before" if before else f"{made['wall_seconds']:.0f} s"
        self.trials.append(made)
        self._write()
        speed: Optional[float] = made["samples_per_second"]
        shown = made["reason"] or f"{rate_text(speed or 0)} samples/s, {size_text(max(made['memory_bytes']))} a rank"
        self._say(f"trial {len(self.trials)}  {way}, micro-batch {micro}  {took}  {shown}")
        if made["kind"] in MENDABLE:
            raise Unfit
        return speed

    def _measured(self, way: Way, micro: int) -> dict[str, Any]:
        folder = self.folder / "runs" / f"{len(self.trials) + 1}"
        resolved = _as(self.resolved, way.sharding, way.checkpointing, micro)
        job = derive(resolved, way.sharding, str(folder / "out"), self.options.warmup, self.options.steps)
        run = asdict(measure(job, folder, self.options.warmup, self.options.limit * 60))
        return {"way": str(way), **way.sharding.as_dict(), "gradient_checkpointing": way.checkpointing,
                "micro_batch": micro, "samples_per_second": per_second(run, "samples") if run["segments"] else None,
                **run}

    def _write(self) -> None:
        """After each trial: an interrupted search keeps what it has seen."""
        write_json(self.folder / "tune.json", {**self.made, "made": now()})

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True, file=sys.stderr if self.options.json else sys.stdout)


