"""`debzero status`: where a run is, from the files in its output folder."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from debzero import progress, report
from debzero.errors import InputError, Problem
from debzero.files import read_json
from debzero.job import read_mapping
from debzero.runstate import FINAL, Output
from debzero.stack import jobs_folder


def find(name: str) -> Output:
    """The output folder meant by a job's name, a job file or a folder."""
    path = Path(name)
    if path.is_dir():
        return Output(str(path.absolute()))
    named = jobs_folder() / f"{name}.yml"
    file = path if path.is_file() else named if named.is_file() else None
    if file is None:
        known = ", ".join(sorted(p.stem for p in jobs_folder().glob("*.yml"))) or "none"
        raise InputError([Problem(name, "name", f"is no job in {jobs_folder()}, no job file and no output folder",
                                  f"the jobs here are: {known}")])
    output = read_mapping(file).get("output")
    if not isinstance(output, str):
        raise InputError([Problem(str(file), "output", "is missing", "see `debzero check`")])
    return Output(str((file.absolute().parent / output).absolute()))


def show(status: dict[str, Any]) -> str:
    """One status as a line (or for a finished run, its first line)."""
    text = str(status["state"])
    if status.get("loss") is not None and status["state"] not in FINAL:
        text += "  " + progress.line(status)
    elif status["state"] != "finished":
        text += f"  at step {status['step']}/{status['total_steps'] or '?'}"
    more = [status.get("error"), status.get("warning"), status.get("given_up") and f"given up: {status['given_up']}"]
    return "\n  ".join([text, *filter(None, more)])


def status(name: str, as_json: bool, watch: bool) -> int:
    """Exit code: 0 finished or running, 1 failed or stopped (or not started), 2 unknown name."""
    output = find(name)
    if watch:
        _watch(output)
    values = output.status()
    made = read_json(output.report_file) if values.get("state") == "finished" else {}
    if as_json:
        print(json.dumps({**values, "report": made or None} if values else {"state": "not started"}, indent=2))
    elif not values:
        print(f"not started: {output.folder} has no run")
    else:
        print(report.text(made) if made else show(values))
    return 0 if values and values["state"] not in ("failed", "stopped") else 1


def _watch(output: Output) -> None:
    """Follow a run until it ends: one changing line on a terminal, a line for each change elsewhere."""
    shown, live = "", sys.stdout.isatty()
    while True:
        values = output.status()
        if values.get("state") in FINAL:
            break
        text = show(values).split("\n")[0] if values else f"waiting for a run in {output.folder}"
        if text != shown:
            print(f"\r\033[K{text}" if live else text, end="" if live else "\n", flush=True)
            shown = text
        time.sleep(1)
    if live:
        print("\r\033[K", end="")
