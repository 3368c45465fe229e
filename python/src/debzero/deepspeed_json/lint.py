"""The linter of DeepSpeed's own JSON: DeepSpeed ignores much of what is wrong in one, or stops without saying where.

Each finding has a code of codes.py, and an `edit` if only one correction is possible. The rules are in the modules
rules_*.py, and what becomes of each key in keys.yml.
"""
from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.deepspeed_json import rules_meaning, rules_offload, rules_releases, rules_shape, rules_state
from debzero.deepspeed_json.codes import CODES
from debzero.deepspeed_json.releases import Releases
from debzero.deepspeed_json.view import ConfigView, Edit, dotted
from debzero.job.schema import Job

RULES = (*rules_shape.RULES, *rules_state.RULES, *rules_offload.RULES, *rules_meaning.RULES, *rules_releases.RULES)


@dataclass(frozen=True)
class Finding:
    """A problem; the `edit` that fixes it, if only one is possible; and a line that describes that change."""

    problem: Problem
    edit: Optional[Edit] = None
    change: str = ""


def json_place(job: Optional[Job], file: str) -> tuple[str, str]:
    """The file that holds the configuration, and what precedes its keys there: `deepspeed.` where it is inline in the
    job, in `file`."""
    theirs = job.deepspeed if job is not None else None
    return theirs if isinstance(theirs, str) else file, "deepspeed." if isinstance(theirs, dict) else ""


def lint(config: dict[str, Any], file: str, ranks: Optional[int] = None, gpus: Optional[int] = None,
         job: Optional[Job] = None, releases: Optional[Releases] = None) -> list[Finding]:
    """All findings in a configuration, in the order of RULES, for the installed releases or the given ones.

    `job` is the job that it belongs to, in `file`: its zero section is judged too, with what the configuration
    overrules. A finding is placed where the value stands: in the job, or in the file that its `deepspeed:` names.
    """
    view, found = ConfigView(config, ranks, gpus, job, releases), []
    json_file, prefix = json_place(job, file)
    for rule in RULES:
        for violation in rule(view):
            code, key = CODES[violation.code], dotted(violation.path)
            severity = violation.severity or code.severity
            if violation.in_job:
                found.append(Finding(Problem(file, key, violation.reason, violation.fix, "", severity)))
            else:
                problem = Problem(json_file, prefix + key, violation.reason, violation.fix, code.code, severity)
                found.append(Finding(problem, violation.edit, f"{key}: {code.title} ({code.code}), fixed"))
    return found


def problems(config: Optional[dict[str, Any]], file: str, ranks: Optional[int], gpus: Optional[int],
             job: Optional[Job] = None) -> list[Problem]:
    """The problems alone. `config` may be None for a job without DeepSpeed's JSON."""
    return [finding.problem for finding in lint(config or {}, file, ranks, gpus, job)]


def apply_fixes(config: dict[str, Any], job: Optional[Job] = None) -> tuple[dict[str, Any], list[str]]:
    """The configuration with every edit applied, and a line that describes each."""
    config, changes = copy.deepcopy(config), []
    while True:
        before = json.dumps(config, default=str)
        for finding in lint(config, "", job=job):
            if finding.edit is None:
                continue
            finding.edit(config)
            if json.dumps(config, default=str) != before:
                changes.append(finding.change)
                break
        else:
            return config, changes
