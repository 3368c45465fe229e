"""What playbooks/job.yml shows of a job: filters without side effects, from what was registered on a host to its row.

What the hosts print is shown as it came from `debzero status`, which leaves no control characters in it.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Callable

COLUMNS = ("host", "unit", "run", "step", "loss", "words")
WIDEST = 200  # characters of the words


def job_row(unit: Mapping[str, Any], status: Mapping[str, Any], wanted: str) -> dict[str, str]:
    """`unit`: what `systemctl show` came to, as Ansible registers it; `status`: what `debzero status NAME --json` came
    to. `problem`: why the host is not what was wanted; empty where it is."""
    if "stdout" not in unit:  # no command could be run there
        words = _first_line(str(unit.get("msg") or "no connection").replace("Task failed: ", ""))
        return {**dict.fromkeys(COLUMNS, "-"), "unit": "unreachable" if unit.get("unreachable") else "unknown",
                "words": words, "problem": words}
    shown = dict(line.partition("=")[::2] for line in str(unit["stdout"]).splitlines())
    text = str(status.get("stdout", ""))
    run = json.loads(text) if text.startswith("{") else {"state": "unknown", "error": status.get("stderr")}
    row = {"unit": f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', 'unknown')})",
           "run": str(run["state"]),
           "step": "-" if run.get("step") is None else f"{run['step']}/{run.get('total_steps') or '?'}",
           "loss": "-" if run.get("loss") is None else f"{run['loss']:.4f}",
           "words": _first_line(run.get("given_up") or run.get("error") or shown.get("StatusText") or "")}
    if shown.get("ActiveState") == "failed" and not row["words"]:
        row["words"] = "it failed before the run began: its journal has the reason"
    return {**row, "problem": _problem(row, wanted)}


def _first_line(text: object) -> str:
    return (str(text).strip().splitlines() or [""])[0][:WIDEST]


def _problem(row: Mapping[str, str], wanted: str) -> str:
    state, _, detail = row["unit"].partition(" ")
    running = state == "active" and detail != "(exited)" or state == "activating" and detail != "(auto-restart)"
    if wanted == "stopped":
        ended = state in ("inactive", "failed") or state == "active" and not running
        return "" if ended else f"its unit is still {row['unit']}"
    if running or row["run"] == "finished":
        return ""
    return f"its unit is {row['unit']}, its run {row['run']}" + (f": {row['words']}" if row["words"] else "")


def job_table(rows: Mapping[str, Mapping[str, str]], hosts: Sequence[str]) -> list[str]:
    """Lines of a table with a row for each host."""
    cells = [COLUMNS, *([host, *(rows[host][column] for column in COLUMNS[1:])] for host in hosts)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"job_row": job_row, "job_table": job_table}
