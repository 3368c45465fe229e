"""The runs of a bench. Results are on the disk after each run, so an interrupted bench resumes where it was."""
from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Optional

from debzero.base.files import write_text
from debzero.base.text import bytes_text, printable_lines, rate_text
from debzero.bench import page
from debzero.bench.configurations import check, chosen, default_offloads, default_stages, with_own
from debzero.bench.predict import predictions
from debzero.bench.results import NAME, BenchResults, Configuration, Row, Settings, load
from debzero.bench.tables import as_text
from debzero.check import checks
from debzero.job.schema import Job
from debzero.measure.derive import derive
from debzero.measure.facts import DEFINITIONS, command_line, host_facts, identity, installed
from debzero.measure.records import RETRYABLE, MeasuredRun
from debzero.measure.run import claim, measure
from debzero.resolve import native
from debzero.resolve.micro_batch import undivided
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding
from debzero.run.folder import now


def start(options: argparse.Namespace) -> int:
    """Check what was asked for, then measure it. Exit code: 0 where at least one configuration was measured, else 1."""
    def folder_of(job: Job) -> Path:
        return (options.output or Path(job.output + "-bench")).absolute()

    resolved = checks.check(options.job, options.ranks, folder_of)
    offloads = options.offload or default_offloads(resolved)
    shardings = chosen(options.stages or default_stages(resolved), offloads)
    check(resolved, str(options.job), offloads, shardings, options.share_gpu)
    folder = folder_of(resolved.job)
    claim(folder)
    return Bench(options, resolved, folder, with_own(resolved, shardings)).run()


class Bench:
    """One bench and its folder: results.json, results.csv, results.md, results.html, runs/, data/, archive/."""

    def __init__(self, options: argparse.Namespace, resolved: ResolvedJob, folder: Path,
                 asked: list[Configuration]) -> None:
        self.options, self.resolved, self.folder, self.asked = options, resolved, folder, asked
        self.results = facts(options, resolved)
        earlier = self._earlier()
        names = [each.name for each in asked]
        kept = {row.name: row for row in earlier.configurations} if earlier else {}
        for name in set(names) & set(kept):
            runs = tuple(run for run in kept[name].runs if not self._is_retried(run))
            kept[name] = replace(kept[name], runs=runs)
        rows = [kept.get(each.name) or Row(**each.as_dict()) for each in asked]
        rows += [row for name, row in kept.items() if name not in names]
        commands = [*(earlier.command.splitlines() if earlier else []), self.results.command]
        self.results = replace(self.results, command="\n".join(dict.fromkeys(commands)), configurations=tuple(rows),
                               inference=earlier.inference if earlier else None,
                               alone_runs=earlier.alone_runs if earlier else ())

    def _earlier(self) -> Optional[BenchResults]:
        """The results of an earlier start that this one continues. Others move to archive/."""
        file = self.folder / NAME
        if not file.exists():
            return None
        if self.options.again:
            self._say(f"measuring everything again: the earlier results moved to {archive(self.folder)}")
            return None
        earlier = load(file, "move the file away, or start again with --again")
        if earlier.identity != self.results.identity:
            self._say(f"the earlier results are of another job, host or setting: moved to {archive(self.folder)}")
            return None
        self._say(f"continuing with the results in {self.folder} (--again measures everything again)")
        return earlier

    def _is_retried(self, run: MeasuredRun) -> bool:
        """Whether this start repeats a run of an earlier one: its cause may have been fixed, or it has more time
        now."""
        return run.kind in RETRYABLE or (run.kind == "time" and run.wall_seconds < self.options.limit * 60)

    def run(self) -> int:
        self._predict()
        for repeat in range(1, self.options.repeats + 1):  # all rows, then all again: a host that slows down slows all
            self._measure_alone(repeat)
            for each in self.asked:
                row = self._row(each)
                if len(row.runs) < repeat and not row.failed:
                    self._measure(row, repeat)
        self._write()
        if self.options.json:
            print(json.dumps(self.results.as_json(), indent=2))
        self._say("\n" + as_text(self.results),
                  f"\nwritten: {self.folder / page.NAME}, and results.json, .csv and .md beside it")
        return 0 if self.results.measured else 1

    def _row(self, asked: Configuration) -> Row:
        return next(row for row in self.results.configurations if row.name == asked.name)

    def _job(self, row: Row, output: Path, warmup: int, steps: int) -> Job:
        """The one that measures a row."""
        resolved = self.resolved if row.configuration.divides else undivided(self.resolved)
        return derive(resolved, row.sharding, str(output), warmup, steps)

    def _predict(self) -> None:
        """Predict each row before its first run. Predictions are of GPU memory, so without a GPU there are none."""
        rows = [row for row in self.results.configurations if not row.runs and row.predicted is None]
        if rows and self.resolved.host.gpus:
            job = self.folder / "predicted.yml"
            for divides in (False, True):
                alike = [row for row in rows if row.configuration.divides is divides]
                if alike:  # a plan is of all shardings, or of one division
                    write_text(job, self._job(alike[0], self.folder / "predicted", 1, 1).as_yaml())
                    found = predictions(job, alike[0].sharding)
                    for row in alike:
                        self.results = self.results.with_row(replace(row, predicted=found.get(row.sharding)))

    def _measure(self, row: Row, repeat: int) -> None:
        folder = self.folder / "runs" / f"{row.name}-{repeat}"
        run = self._run(self._job(row, folder / "out", self.options.warmup, self.options.steps), folder)
        self.results = self.results.with_row(replace(row, runs=(*row.runs, run)))
        self._report(row.label, repeat, run)

    def _measure_alone(self, repeat: int) -> None:
        """One rank with its share of the work, where several have a GPU each: whether these pay. A model that is
        divided may not fit on one."""
        runs, batch = self.results.alone_runs, self.resolved.batch
        if (batch.ranks == 1 or self.resolved.layout.each > 1 or self.resolved.host.gpus < batch.ranks
                or len(runs) >= repeat or (runs and not runs[-1].measured)):
            return
        folder = self.folder / "runs" / f"alone-{repeat}"
        job = derive(self.resolved, Sharding(0), str(folder / "out"), self.options.warmup, self.options.steps)
        job = job.model_copy(update={"ranks": 1, "train": job.train.model_copy(update={
            "global_batch": batch.total // batch.ranks})})
        run = self._run(job, folder)
        self.results = replace(self.results, alone_runs=(*runs, run))
        self._report("one rank alone", repeat, run)

    def _run(self, job: Job, folder: Path) -> MeasuredRun:
        cap = self.options.cap * 2**30 if self.options.cap else None
        return measure(job, folder, self.options.warmup, self.options.limit * 60, cap)

    def _report(self, label: str, repeat: int, run: MeasuredRun) -> None:
        self._write()
        shown = run.reason or (f"{bytes_text(max(run.memory_bytes))} a rank, "
                               f"{rate_text(run.samples_per_second)} samples/s")
        self._say(f"{label:<18} {repeat}/{self.options.repeats}  {run.wall_seconds:6.1f} s  {shown}")

    def _write(self) -> None:
        self.results = replace(self.results, made=now())
        page.write(self.results, self.folder / NAME)

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(printable_lines(line), flush=True, file=sys.stderr if self.options.json else sys.stdout)


def archive(folder: Path) -> Path:
    """Move a bench's results away; where they are now."""
    place = folder / "archive" / now().replace(":", "")
    place.mkdir(parents=True, exist_ok=True)
    for name in (*page.FILES, "runs", "predicted.yml"):  # anything else in the folder is not this bench's
        if (folder / name).exists():
            (folder / name).rename(place / name)
    return place


def facts(options: argparse.Namespace, resolved: ResolvedJob) -> BenchResults:
    """All of the results that is known before the first run."""
    model = resolved.job.model if isinstance(resolved.job.model, str) else f"{resolved.job.model['type']} from scratch"
    settings = Settings(resolved.layout.ranks, resolved.shares_gpus, options.steps, options.warmup, options.cap)
    host, versions = host_facts(resolved, options.name), installed()
    return BenchResults(
        identity=identity(resolved, asdict(settings), host, versions), made=now(), command=command_line(),
        job_file=options.job.name, job=_as_written(resolved.job, options.job),
        model=Path(model).name if model.startswith("/") else model, precision=resolved.precision, batch=resolved.batch,
        settings=settings, speed_comparable=not resolved.shares_gpus, host=host, versions=versions,
        left_out="The job's own DeepSpeed JSON would not let the stages differ: its batch, rates and precision were "
                 "taken, the rest was left out." if resolved.deepspeed else None,
        definitions=DEFINITIONS, records_steps=resolved.host.gpus > 0 and native.pays())


def _as_written(job: Job, file: Path) -> dict[str, Any]:
    """The job with every key. Its paths are relative to the job file where they can be, so that it is the same job on
    another host."""
    values, folder = job.model_dump(mode="json"), str(file.absolute().parent)
    for section, key in ((values, "model"), (values["data"], "dataset"), (values, "output")):
        if isinstance(section[key], str) and section[key].startswith(folder + os.sep):
            section[key] = "./" + os.path.relpath(section[key], folder)
    return values
