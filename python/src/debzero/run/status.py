"""`debzero status`: where a run is, from the files in its output folder."""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Optional, TextIO

from debzero.base.errors import InputError, Problem
from debzero.base.files import read_json, unreadable
from debzero.base.stack import jobs_folder
from debzero.base.text import duration_text
from debzero.job.local_files import within
from debzero.job.reader import read_mapping
from debzero.run import progress, report
from debzero.run.folder import FINAL, Output


def _known() -> str:
    return ", ".join(sorted(p.stem for p in jobs_folder().glob("*.yml"))) or "none"


def find(name: str) -> Output:
    """The output folder meant by a job's name, a job file or a folder, where this user may look into it."""
    path = Path(name)
    output = Output(str(path.absolute() if os.path.isdir(path) else _named(path, name)))
    for file in (output.lock_file, output.status_file):  # what cannot be seen must not pass for a run that is not there
        if reason := unreadable(file):
            raise InputError([Problem(name, "output", f"{file} {reason}",
                                      "run this as the user that trains there, or as root")])
    return output


def _named(path: Path, name: str) -> str:
    """The output folder of a job file, or of a job of this host."""
    named = jobs_folder() / f"{name}.yml"
    file = next((file for file in (path, named) if os.path.isfile(file)), None)
    if file is None:
        reason = unreadable(path) or f"is no job in {jobs_folder()}, no job file and no output folder"
        raise InputError([Problem(name, "name", reason, f"the jobs here are: {_known()}")])
    output = read_mapping(file).get("output")
    if not isinstance(output, str):
        raise InputError([Problem(str(file), "output", "is missing", "see `debzero check`")])
    return within(file.absolute().parent, output)


def show(status: dict[str, Any]) -> str:
    """One status as a line (or for a finished run, its first line), and below it what went wrong."""
    text = str(status["state"])
    if status.get("loss") is not None and status["state"] not in FINAL:
        text += "  " + progress.line(status)
    elif status["state"] != "finished":
        text += f"  at step {status.get('step', 0)}/{status.get('total_steps') or '?'}"
    notes = [status.get("error"),
             status.get("given_up") and f"given up: {status['given_up']}; mend the cause, then start it again",
             status.get("warning") and f"warning: {status['warning']}"]
    return text + "".join(f"\n  {note}" for note in notes if note)


def status(name: Optional[str], as_json: bool, watch: bool) -> int:
    """Exit code: 0 finished or running, 1 failed or stopped (or not started), 2 unknown name. Without a name: all jobs of this
    host, and 0."""
    if name is None:
        if watch:
            raise InputError([Problem("debzero status", "--watch", "follows one run, and none is named",
                                      f"name one; the jobs here are: {_known()}")])
        return _overview(as_json)
    output = find(name)
    if watch:
        _watch(output, sys.stderr if as_json else sys.stdout)
    values = output.status()
    made = read_json(output.report_file) if values.get("state") == "finished" else {}
    if as_json:
        print(json.dumps({**values, "report": made or None} if values else {"state": "not started"}, indent=2))
    elif not values:
        print(f"not started: {output.folder} has no run")
    else:
        print(report.text(made) if made else show(values))
    return 0 if values and values["state"] not in ("failed", "stopped") else 1


def _overview(as_json: bool) -> int:
    """Every job file of this host, with its run's state."""
    rows = [_row(path) for path in sorted(jobs_folder().glob("*.yml"))]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no jobs in {jobs_folder()}")
    else:
        shown = [("job", "state", "step", "", "changed"), *(
            (row["name"], row["state"], f"{row['step']}/{row.get('total_steps') or '?'}" if row.get("step") is not None
             else "-", row["words"], row.get("updated") or "-") for row in rows)]
        widths = [max(map(len, column)) for column in zip(*shown)]
        for cells in shown:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    return 0


def _row(path: Path) -> dict[str, Any]:
    """A job's name, its status, and `words`: what there is to say in its state."""
    try:
        output = find(str(path))
    except InputError as error:
        problem = error.problems[0]
        return {"name": path.stem, "state": "wrong", "words": f"{problem.key} {problem.reason}"}
    values = output.status()
    if not values:
        return {"name": path.stem, "state": "not started", "words": "", "output": str(output.folder)}
    if values["state"] == "finished":
        words = report.headline(read_json(output.report_file))
    elif values["state"] in FINAL:
        words = f"given up: {values['given_up']}" if values.get("given_up") else str(values.get("error") or "")
    else:
        loss = f"loss {values['loss']:.4f}, " if values.get("loss") is not None else ""
        words = f"{loss}ETA {duration_text(values.get('eta_seconds'))}"
    return {"name": path.stem, **values, "words": words.split("\n")[0][:100], "output": str(output.folder)}


def _watch(output: Output, to: TextIO) -> None:
    """Follow a run until it ends: one changing line on a terminal, a line for each change elsewhere."""
    shown, live = "", to.isatty()
    while True:
        values = output.status()
        if values.get("state") in FINAL:
            break
        text = show(values).split("\n")[0] if values else f"waiting for a run in {output.folder}"
        if text != shown:
            print(f"\r\033[K{text}" if live else text, end="" if live else "\n", file=to, flush=True)
            shown = text
        time.sleep(1)
    if live:
        print("\r\033[K", end="", file=to, flush=True)
