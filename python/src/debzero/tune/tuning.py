"""`debzero tune`: the settings with the highest samples/s that fit, found by a few short trials and written into the
job file.

The global batch stays exactly what it is. The search is meant to find what a sweep over all settings would, in a third
of the trials. `debzero plan` says where to begin: at the largest micro-batch that fits.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from debzero.base import privileges
from debzero.base.errors import InputError, Problem
from debzero.base.files import write_json
from debzero.base.text import bytes_text, printable_lines, rate_text
from debzero.check import checks
from debzero.job.reader import parse
from debzero.job.schema import Job
from debzero.measure.derive import derive
from debzero.measure.facts import command_line, host_facts, identity, installed
from debzero.measure.records import MeasuredRun
from debzero.measure.run import claim, measure
from debzero.resolve.micro_batch import with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import now
from debzero.tune import job_file
from debzero.tune.dimensions import REFINED, asked
from debzero.tune.job_file import RootsWriter, Value, check_writable
from debzero.tune.search import Best, Unfit, Way, allowed, refine, search
from debzero.tune.trials import NAME, Chosen, SearchResult, Settings, TrialRun, TuneResults, read_trials
from debzero.tune.ways import refinements, values_of, ways, with_way

Write = Callable[[Mapping[str, Value]], None]  # values by dotted key, into the job file


def tune(options: argparse.Namespace) -> int:
    """The command. Exit code: 0 where something runs, else 1."""
    def folder_of(job: Job) -> Path:
        return Path(job.output + "-tune").absolute()

    write = _writer(options.job, folder_of) if not options.dry_run else None
    resolved = checks.check(options.job, options.ranks, folder_of)
    if resolved.deepspeed is not None:
        raise InputError([Problem(str(options.job), "deepspeed",
                                  "the job's own DeepSpeed JSON decides the settings that would be tuned",
                                  "move its settings into the job's `train:` and `zero:`, and remove the key")])
    if resolved.shares_gpus:
        raise InputError([Problem(str(options.job), "--ranks",
                                  f"{resolved.layout.ranks} ranks need as many GPUs, and this host has "
                                  f"{resolved.host.gpus}: ranks that share a GPU give no meaningful speed",
                                  f"use --ranks {resolved.host.gpus}")])
    folder = folder_of(resolved.job)
    claim(folder)
    return Tuning(options, resolved, folder, write).run()


def _writer(file: Path, folder_of: Callable[[Job], Path]) -> Optional[Write]:
    """What will write the result into the job file; None where the job is wrong, which its check reports. It has this
    process's rights, which the search may have to give up."""
    job, problems = parse(file)
    if job is None or problems:
        return None
    check_writable(file)
    return RootsWriter(file).write if privileges.is_anothers(folder_of(job)) else partial(job_file.write, file)


class Tuning:
    """One search and its folder: tune.json, runs/ with each trial's log, data/. An interrupted search resumes with the
    trials that it has finished."""

    def __init__(self, options: argparse.Namespace, resolved: ResolvedJob, folder: Path,
                 write: Optional[Write]) -> None:
        self.options, self.resolved, self.folder, self.write = options, resolved, folder, write
        self.dimensions = asked(options.search)
        self.ways = ways(resolved, options.job, self.dimensions)
        settings = Settings(resolved.layout.ranks, options.steps, options.warmup, options.limit)
        host, versions = host_facts(resolved, options.name), installed()
        self.results = TuneResults(
            identity=identity(resolved, asdict(settings), host, versions), command=command_line(), job=str(options.job),
            settings=settings, host=host, versions=versions, sweep=sum(len(way.sizes) for way in self.ways))
        file = folder / NAME
        earlier = read_trials(file, self.results.identity) if file.is_file() else []
        self.earlier = {trial.key: trial for trial in earlier if not trial.retryable}

    def run(self) -> int:
        sweep = self.results.sweep
        refined = [name for name in self.dimensions if name in REFINED]
        self._say(f"{self.resolved.batch_text}; {allowed(self.ways)} trials of the {sweep} that a sweep takes"
                  + (f"; then from the fastest on: {', '.join(refined)}" if refined else ""))
        best = search(self.ways, self._trial)
        if best:
            best = refine(best, [partial(refinements, self.resolved, self.options.job, name) for name in refined],
                          self._trial)
        if self.options.exhaustive:
            best = self._exhaust(best)
        chosen = Chosen(self._values(best), best.speed) if best else None
        written = chosen is not None and self.write is not None
        if chosen and self.write:
            self.write(chosen.values)
        self._keep(replace(self.results, ok=best is not None, complete=True, chosen=chosen, written=written))
        if self.options.json:
            print(json.dumps(self.results.as_json(now()), indent=2))
        if not best or not chosen:
            self._say("nothing runs: see the reasons above")
            return 1
        batch = with_micro(self.resolved, best.micro).batch_text
        self._say(f"\n{best.way}, {batch}: {rate_text(best.speed)} samples/s",
                  *(f"  {key}: {_in_yaml(value)}" for key, value in chosen.values.items()),
                  f"{f'written into {self.options.job}' if written else 'not written (--dry-run)'}; "
                  f"all trials are in {self.folder / NAME}")
        return 0

    def _values(self, best: Best) -> dict[str, Value]:
        """What the job file gets: the micro-batch, and what else was searched for."""
        values = values_of(self.resolved, best, self.dimensions)
        return {**values, "ranks": self.options.ranks} if self.options.ranks else values

    def _exhaust(self, found: Optional[Best]) -> Optional[Best]:
        """Try what the search has left out as well, and note how good the search was. The best of all."""
        count, best = len(self.results.trials), found
        tried = {trial.key: trial.samples_per_second for trial in self.results.trials}
        for way in self.ways:
            for micro in way.sizes:
                key = str(way), micro
                try:
                    speed = tried[key] if key in tried else self._trial(way, micro)
                except Unfit:
                    break
                if speed is not None and (best is None or speed > best.speed):
                    best = Best(way, micro, speed)
        if found and best:
            share, chosen = found.speed / best.speed, Chosen(self._values(found), found.speed)
            self.results = replace(self.results, search=SearchResult(chosen, count, share))
            self._say(f"the search: {found.way}, micro-batch {found.micro} after {count} trials, {share:.1%} of the "
                      f"best of {self.results.sweep}")
        return best

    def _trial(self, way: Way, micro: int) -> Optional[float]:
        earlier, job = self.earlier.get((str(way), micro)), with_way(self.resolved, way, micro).job
        trial = earlier or TrialRun.of(way, job, micro, self._measure(way, micro))
        self._keep(replace(self.results, trials=(*self.results.trials, trial)))
        run, speed = trial.run, trial.samples_per_second
        took = "measured before" if earlier else f"{run.wall_seconds:.0f} s"
        shown = run.reason or f"{rate_text(speed or 0)} samples/s, {bytes_text(max(run.memory_bytes))} a rank"
        self._say(f"trial {len(self.results.trials)}  {way}, micro-batch {micro}  {took}  {shown}")
        if trial.retryable:
            raise Unfit
        return speed

    def _measure(self, way: Way, micro: int) -> MeasuredRun:
        folder = self.folder / "runs" / f"{len(self.results.trials) + 1}"
        resolved = with_way(self.resolved, way, micro)
        job = derive(resolved, way.sharding, str(folder / "out"), self.options.warmup, self.options.steps)
        return measure(job, folder, self.options.warmup, self.options.limit * 60)

    def _keep(self, results: TuneResults) -> None:
        """After each trial: an interrupted search keeps what it has measured."""
        self.results = results
        write_json(self.folder / NAME, results.as_json(now()))

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(printable_lines(line), flush=True, file=sys.stderr if self.options.json else sys.stdout)


def _in_yaml(value: Value) -> str:
    """As the job file gets it."""
    return "removed" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
