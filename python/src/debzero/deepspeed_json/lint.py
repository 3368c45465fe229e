"""`debzero check` for DeepSpeed's own JSON: much of what is wrong in one DeepSpeed ignores, or asserts without saying
where.

Each finding has a code of CODES, and an `edit` where only one change can be meant. The rules are in rules_shape.py and
rules_meaning.py. """
from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, Literal, Optional

from debzero.base.errors import Problem
from debzero.deepspeed_json import rules_meaning, rules_shape
from debzero.deepspeed_json.view import Edit, Look, dotted
from debzero.job.schema import Job

CODES = {
    "DZ101": "a key that DeepSpeed does not know",
    "DZ102": "a value of the wrong type",
    "DZ103": '"auto" where nothing fills it in',
    "DZ104": "a key that later releases renamed or dropped",
    "DZ105": "a key written twice",
    "DZ106": "a number out of range",
    "DZ110": "offload_param below stage 3",
    "DZ111": "NVMe offload below stage 3",
    "DZ112": "NVMe offload without nvme_path",
    "DZ113": "offload_optimizer without ZeRO",
    "DZ114": "a partial offload (ratio) below stage 3",
    "DZ115": "stage 3's settings below stage 3",
    "DZ116": "stage 3 whose save_16bit_model writes nothing",
    "DZ117": "pipeline parallelism with stage 2 or 3",
    "DZ118": "overlapping communication between ranks that share a GPU",
    "DZ120": "batch sizes that do not fit together",
    "DZ130": "fp16 and bf16 at once",
    "DZ131": "a first loss scale that wastes steps",
    "DZ132": "a fixed loss scale",
    "DZ140": "max_grad_norm among the optimizer's parameters",
    "DZ141": "an unknown optimizer",
    "DZ142": "an optimizer that ZeRO was not tried with",
    "DZ143": "an optimizer setting without effect, or slow, when offloaded",
    "DZ144": "an unknown learning-rate schedule",
    "DZ145": "a schedule's parameter that is missing or unknown",
    "DZ146": "a warm-up longer than the training",
    "DZ150": "load_universal set by hand",
}
WARNINGS = {"DZ103", "DZ104", "DZ115", "DZ116", "DZ131", "DZ132", "DZ143", "DZ146", "DZ150"}
RULES = (*rules_shape.RULES, *rules_meaning.RULES)


@dataclass(frozen=True)
class Finding:
    """A problem, with the change that mends it where only one can be meant, and that change in words."""

    problem: Problem
    edit: Optional[Edit] = None
    change: str = ""


def lint(config: dict[str, Any], file: str, ranks: Optional[int] = None, gpus: Optional[int] = None,
         job: Optional[Job] = None, prefix: str = "") -> list[Finding]:
    """All findings, in the order of RULES. `job`: the one that the configuration belongs to, whose zero section counts
    too."""
    look, found = Look(config, ranks, gpus, job), []
    for rule in RULES:
        for raw in rule(look):
            severity: Literal["error", "warning"] = raw.severity or ("warning" if raw.code in WARNINGS else "error")
            problem = Problem(file, prefix + dotted(raw.path), raw.reason, raw.fix, raw.code, severity)
            found.append(Finding(problem, raw.edit, f"{dotted(raw.path)}: {CODES[raw.code]} ({raw.code}), mended"))
    return found


def problems(config: dict[str, Any], file: str, ranks: Optional[int], gpus: Optional[int],
             job: Optional[Job] = None) -> list[Problem]:
    """The problems alone. Of a job's configuration, they are placed in the file that the lines stand in."""
    if job is not None and isinstance(job.deepspeed, str):
        file = job.deepspeed
    inline = job is not None and isinstance(job.deepspeed, dict)
    return [finding.problem for finding in lint(config, file, ranks, gpus, job, "deepspeed." if inline else "")]


def mend(config: dict[str, Any], job: Optional[Job] = None) -> tuple[dict[str, Any], list[str]]:
    """The configuration with every change that can be made safely, and those changes in words."""
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
