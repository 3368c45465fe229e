"""The runs of a bench, with the results on the disk after each, so that an interrupted one goes on where it was."""
from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from debzero.base.files import read_json, write_text
from debzero.base.text import rate_text, size_text
from debzero.bench import page, results
from debzero.bench.configurations import check, chosen, default_offloads
from debzero.bench.predict import prediction, predictions
from debzero.check import checks
from debzero.job.schema import Job
from debzero.measure.derive import derive
from debzero.measure.facts import DEFINITIONS, command_line, host_facts, identity, installed
from debzero.measure.run import MENDABLE, claim, measure, per_second
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding
from debzero.run.folder import now


def start(options: argparse.Namespace) -> int:
    """Check what was asked for, then measure it. Exit code: 0 where at least one configuration was measured, else 1."""
    resolved = checks.check(options.job, options.ranks)
    offloads = options.offload or default_offloads(resolved)
    found = chosen(options.stages, offloads)
    check(resolved, str(options.job), offloads, found, options.share_gpu)
    folder = (options.output or Path(resolved.job.output + "-bench")).absolute()
    claim(folder)
    return Bench(options, resolved, folder, found).run()


class Bench:
    """One bench and its folder: results.json, results.csv, results.md, results.html, runs/, data/, archive/."""

    def __init__(self, options: argparse.Namespace, resolved: ResolvedJob, folder: Path, found: list[Sharding]) -> None:
        self.options, self.resolved, self.folder, self.found = options, resolved, folder, found
        self.facts = facts(options, resolved)
        before = read_json(folder / "results.json")
        if before and (options.again or before.get("identity") != self.facts["identity"]):
            self._say("earlier results are "
                      f"{'measured again' if options.again else 'of another job, host or setting'}: moved to "
                      f"{self._archive()}")
            before = {}
        elif before:
            self._say(f"going on with the results in {folder} (--again measures everything anew)")
        kept = {row["name"]: row for row in before.get("configurations", [])}
        names = [sharding.name for sharding in found]
        for name in set(names) & set(kept):
            kept[name]["runs"] = [run for run in kept[name]["runs"] if not self._to_repeat(run)]
        commands = dict.fromkeys([*before.get("command", "").splitlines(), self.facts["command"]])
        rows = [{**kept.pop(sharding.name, {"runs": [], "summary": None, "predicted": None}), **sharding.described()}
                for sharding in found]
        self.results = {**self.facts, "command": "\n".join(commands),
                        "configurations": rows + [row for name, row in kept.items() if name not in names]}

    def _to_repeat(self, run: dict[str, Any]) -> bool:
        """Whether a run of an earlier start is to be made again: its cause may have been mended, or it has more time
        now."""
        return run["kind"] in MENDABLE or (run["kind"] == "time" and run["wall_seconds"] < self.options.limit * 60)

    def run(self) -> int:
        repeats = self.options.repeats
        self._predict()
        for repeat in range(1, repeats + 1):  # all rows once, then again: a host that slows down does so for all
            for sharding, row in zip(self.found, self.results["configurations"]):
                failed = any(run["kind"] != "measured" for run in row["runs"])
                if len(row["runs"]) < repeat and not failed:
                    self._measure(sharding, row, repeat)
        self._write()
        if self.options.json:
            print(json.dumps(self.results, indent=2))
        self._say("\n" + results.as_text(self.results),
                  f"\nwritten: {self.folder / page.NAME}, and results.json, .csv and .md beside it")
        return 0 if any(row["summary"] for row in self.results["configurations"]) else 1

    def _predict(self) -> None:
        """Each row's prediction, made before its first run. It speaks of GPUs: without one, nothing here could be held
        against it."""
        rows = [row for row in self.results["configurations"] if not row["runs"] and row["predicted"] is None]
        if rows and self.resolved.host.gpus:
            job = self.folder / "predicted.yml"
            write_text(job, yaml.safe_dump(derive(self.resolved, self.found[0], str(self.folder / "predicted"), 1, 1)))
            choices = predictions(job)
            for row in rows:
                row["predicted"] = prediction(choices, row)

    def _measure(self, sharding: Sharding, row: dict[str, Any], repeat: int) -> None:
        folder = self.folder / "runs" / f"{sharding.name}-{repeat}"
        job = derive(self.resolved, sharding, str(folder / "out"), self.options.warmup, self.options.steps)
        run = measure(job, folder, self.options.warmup, self.options.limit * 60,
                      self.options.cap * 2**30 if self.options.cap else None)
        row["runs"].append(asdict(run))
        row["summary"] = results.summarize(row["runs"])
        self._write()
        shown = run.reason or (f"{size_text(max(run.memory_bytes))} a rank, "
                               f"{rate_text(per_second(asdict(run), 'samples'))} samples/s")
        self._say(f"{sharding.label:<18} {repeat}/{self.options.repeats}  {run.wall_seconds:6.1f} s  {shown}")

    def _write(self) -> None:
        self.results["made"] = now()
        page.write(self.results, self.folder / page.FILES[0])

    def _archive(self) -> Path:
        archive = self.folder / "archive" / now().replace(":", "")
        archive.mkdir(parents=True, exist_ok=True)
        for name in (*page.FILES, "runs", "predicted.yml"):  # what else lies in the folder is not this bench's
            if (self.folder / name).exists():
                (self.folder / name).rename(archive / name)
        return archive

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True, file=sys.stderr if self.options.json else sys.stdout)


def facts(options: argparse.Namespace, resolved: ResolvedJob) -> dict[str, Any]:
    """All of results.json that is known before the first run."""
    model = resolved.job.model if isinstance(resolved.job.model, str) else f"{resolved.job.model['type']} from scratch"
    settings = {"ranks": resolved.batch.ranks, "share_gpu": resolved.shares_gpus, "steps": options.steps,
                "warmup": options.warmup, "cap_gib": options.cap}
    host, versions = host_facts(resolved, options.name), installed()
    return {
        "format": results.FORMAT, "identity": identity(resolved, settings, host, versions),
        "made": now(), "command": command_line(), "job_file": options.job.name,
        "job": _as_written(resolved.job, options.job), "model": Path(model).name if model.startswith("/") else model,
        "precision": resolved.precision, "batch": {**asdict(resolved.batch), "text": str(resolved.batch)}, "settings": settings,
        "speed_comparable": not resolved.shares_gpus,
        "left_out": "The job's own DeepSpeed JSON would not let the stages differ: its batch, rates and precision "
                    "were taken, the rest was left out." if resolved.deepspeed else None,
        "host": host, "versions": versions, "definitions": DEFINITIONS, "article": results.ARTICLE}


def _as_written(job: Job, file: Path) -> dict[str, Any]:
    """The job with every key; its paths are relative to the job file where they can be, so that it is the same job
    elsewhere."""
    values, folder = job.model_dump(mode="json"), str(file.absolute().parent)
    for section, key in ((values, "model"), (values["data"], "dataset"), (values, "output")):
        if isinstance(section[key], str) and section[key].startswith(folder + os.sep):
            section[key] = "./" + os.path.relpath(section[key], folder)
    return values


