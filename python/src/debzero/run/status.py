"""`debzero status`: where a run is, from the files in its output folder."""
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, TextIO

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import unreadable
from debzero.base.stack import jobs_folder
from debzero.base.text import duration_text, printable, printable_lines
from debzero.job.document import read_mapping
from debzero.job.local_files import within
from debzero.run import progress, report
from debzero.run.folder import FINAL, RunFolder
from debzero.run.records import Status


def _known() -> str:
    return ", ".join(sorted(p.stem for p in jobs_folder().glob("*.yml"))) or "none"


def locate(name: str) -> RunFolder:
    """The output folder of a job's name, a job file or a folder. Raises an InputError where there is none."""
    if not name:  # as from an unset shell variable: not the current folder
        raise InputError([Problem("the command line", "NAME", "is empty",
                                  f"name a run; the jobs here are: {_known()}")])
    path = Path(name)
    return RunFolder(name if os.path.isdir(path) else _output_of(path, name))


def check_readable(folder: RunFolder, name: str) -> None:
    """Raises an InputError where this user may not read the folder: that must not look like a folder without a run."""
    for file in (folder.lock_file, folder.status_file):
        if reason := unreadable(file):
            raise InputError([Problem(name, "output", f"{file} {reason}",
                                      "run this as the user that trains there, or as root")])


def _output_of(path: Path, name: str) -> str:
    """The output folder of a job file, or of a job of this host."""
    named = jobs_folder() / f"{name}.yml"
    file = next((file for file in (path, named) if os.path.isfile(file)), None)
    if file is None:
        reason = unreadable(path) or f"is neither a job in {jobs_folder()}, nor a job file, nor an output folder"
        raise InputError([Problem(name, "name", reason, f"the jobs here are: {_known()}")])
    output = read_mapping(file).get("output")
    if not isinstance(output, str):
        raise InputError([Problem(str(file), "output", "is missing", "see `debzero check`")])
    return within(file.absolute().parent, output)


def show(status: Status, width: Optional[int] = None) -> str:
    """One status as a line of at most `width` columns (or for a finished run, its first line), and below it what went
    wrong."""
    text = printable(status.state)
    if status.waiting_for:
        text += f" for {waiting_text(status.waiting_for)}"
    elif status.loss is not None and status.state not in FINAL:
        text += "  " + progress.line(status, width and width - len(text) - 2)
    elif status.state != "finished":
        text += f"  at step {status.step}/{status.total_steps or '?'}"
    notes = [*_hosts(status), status.error,
             status.given_up and f"given up: {status.given_up}; fix the cause, then start it again",
             status.warning and f"warning: {status.warning}"]
    return text + "".join(f"\n  {printable_lines(note)}" for note in notes if note)


def waiting_text(missing: Mapping[str, str]) -> str:
    """The hosts that are missing, and why."""
    return printable(", ".join(f"{name}, which {why}" if why else name for name, why in missing.items()))


def _hosts(status: Status) -> list[str]:
    """A line for each host of a run that several train."""
    def shown(values: Any) -> str:
        if not isinstance(values, dict):
            return "not there"
        return str(values.get("state")) + (f" at step {values['step']}" if values.get("step") else "")

    hosts = status.hosts or {}
    width = max(map(len, hosts), default=0)
    return [printable(f"{name:<{width}}  {shown(values)}") for name, values in hosts.items()]


def status(name: Optional[str], as_json: bool, watch: bool) -> int:
    """Exit code: 0 finished or running, 1 failed or stopped (or not started), 2 unknown name. Without a name: all jobs
    of this host, and 0."""
    if name is None:
        if watch:
            raise InputError([Problem("debzero status", "--watch", "follows one run, and no run is named",
                                      f"name one; the jobs here are: {_known()}")])
        return _overview(as_json)
    folder = locate(name)
    privileges.become_owner(folder.folder)
    check_readable(folder, name)
    if watch:
        _watch(folder, sys.stderr if as_json else sys.stdout)
    current = folder.status()
    finished = folder.report() if current and current.state == "finished" else None
    if as_json:
        values = {**current.as_json(), "report": finished.as_json() if finished else None} if current else {
            "state": "not started"}
        print(json.dumps(values, indent=2))
    elif current is None:
        print(printable(f"not started: {folder.folder} has no run"))
    else:
        print(report.text(finished) if finished else show(current))
    return 0 if current and current.state not in ("failed", "stopped") else 1


def _overview(as_json: bool) -> int:
    """Every job file of this host, with its run's state."""
    rows = [_row(path) for path in sorted(jobs_folder().glob("*.yml"))]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no jobs in {printable(str(jobs_folder()))}")
    else:
        shown = [tuple(map(printable, cells)) for cells in (("job", "state", "step", "", "changed"), *(
            (row["name"], row["state"], f"{row['step']}/{row.get('total_steps') or '?'}" if row.get("step") is not None
             else "-", row["words"], row.get("updated") or "-") for row in rows))]
        widths = [max(map(len, column)) for column in zip(*shown)]
        for cells in shown:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
    return 0


def _row(path: Path) -> dict[str, Any]:
    """A job's name, its status, and `words`: what there is to say in its state."""
    try:
        folder = locate(str(path))
        with privileges.acting_as_owner(folder.folder):
            return _row_of(folder, path)
    except InputError as error:
        problem = error.problems[0]
        return {"name": path.stem, "state": "invalid", "words": f"{problem.key} {problem.reason}"}
    except UserError as error:
        return {"name": path.stem, "state": "invalid", "words": error.reason}
    except Exception as error:  # whatever one job has, the others are shown
        return {"name": path.stem, "state": "invalid", "words": f"cannot be shown: {type(error).__name__}: {error}"}


def _row_of(folder: RunFolder, path: Path) -> dict[str, Any]:
    check_readable(folder, str(path))
    current = folder.status()
    if current is None:
        return {"name": path.stem, "state": "not started", "words": "", "output": str(folder.folder)}
    if current.state == "finished":
        words = report.headline(folder.report())
    elif current.state in FINAL:
        words = f"given up: {current.given_up}" if current.given_up else current.error or ""
    else:
        loss = f"loss {current.loss:.4f}, " if current.loss is not None else ""
        words = waiting_text(current.waiting_for) if current.waiting_for else (
            f"{loss}ETA {duration_text(current.eta_seconds)}")
    return {**current.as_json(), "name": path.stem, "words": words.split("\n")[0][:100], "output": str(folder.folder)}


def _watch(folder: RunFolder, to: TextIO) -> None:
    """Follow a run until it ends: one changing line on a terminal, of its width; a line for each change elsewhere."""
    shown, live = "", to.isatty()
    while True:
        current = folder.status()
        if current and current.state in FINAL:
            break
        width = _columns(to) - 1 if live else None  # a full last column would wrap
        text = show(current, width).split("\n")[0] if current else (
            printable(f"waiting for a run in {folder.folder}"))
        if text != shown:
            print(f"\r\033[K{text[:width]}" if live else text, end="" if live else "\n", file=to, flush=True)
            shown = text
        time.sleep(1)
    if live:
        print("\r\033[K", end="", file=to, flush=True)


def _columns(terminal: TextIO) -> int:
    """The terminal's width; 80 where it does not know."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns or 80
    except OSError:
        return 80
