"""What playbooks/doctor.yml makes of the answers of `debzero doctor --json`: filters without side effects."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Callable


def _verdict(status: str, cause: str, advice: str = "") -> dict[str, str]:
    return {"status": status, "cause": cause, "advice": advice}


def _line(finding: Mapping[str, Any]) -> str:
    return f"{finding['check']}: {finding['found']}"


def verdict(registered: Mapping[str, Any], cluster_file: str = "") -> dict[str, Any]:
    """`registered`: the command, as Ansible registers it; `cluster_file`: of the job, where one is examined.

    status: ok, broken, unreachable, unknown, or no part (in the job). `warnings`: each with its advice.
    """
    text = str(registered.get("stdout", ""))
    if registered.get("unreachable"):
        why = " ".join(str(registered.get("msg") or "no connection").replace("Task failed: ", "").split())
        found = _verdict("unreachable", why, "check its power, network and SSH key")
    elif text.startswith("skipped, since"):  # the module's word for a file that is not there
        found = _verdict("no part", f"there is no {cluster_file}")
    elif not text.startswith("{"):
        said = str(registered.get("stderr") or "").strip() or "/usr/bin/debzero cannot be run"
        found = _verdict("unknown", said.splitlines()[-1], "run site.yml, which installs debzero")
    else:
        answer = json.loads(text)
        failed = [one for one in answer["findings"] if one["status"] == "fail"]
        warned = [f"{_line(one)} -> {one['advice']}" for one in answer["findings"] if one["status"] == "warn"]
        found = _verdict("ok" if answer["ok"] else "broken", *([_line(failed[0]), failed[0]["advice"]] if failed
                                                               else [""]))
        return {**found, "warnings": warned}
    return {**found, "warnings": []}


def table(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines: one for each host, and below it one for each of its warnings."""
    width, lines = max(map(len, verdicts)), []
    for host, one in verdicts.items():
        lines.append(f"{host:{width}}  {one['status']:11}  {one['cause']}"
                     + (f" -> {one['advice']}" if one["advice"] else ""))
        lines += [f"{'':{width}}  {'warning':11}  {warning}" for warning in one["warnings"]]
    return [line.rstrip() for line in lines]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"doctor_verdict": verdict, "doctor_table": table}
