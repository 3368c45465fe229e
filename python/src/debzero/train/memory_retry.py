"""The micro-batch that fits: predicted at a job's first start, halved when memory ran out, remembered for the next start.

The global batch stays what it is, for accumulation makes up for a smaller micro-batch; so the data's order and the schedule stay, too,
and a run goes on from its checkpoint with another micro-batch as if nothing had been.
"""
from __future__ import annotations

from pathlib import Path
from typing import Optional

from debzero.base.environment import environment
from debzero.base.files import read_json
from debzero.plan.largest_micro import predicted
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import Plan
from debzero.run.folder import Output


def as_told(plan: Plan) -> Plan:
    """A rank's plan, with the micro-batch that its launcher has decided."""
    decided = environment().micro_batch
    return plan if decided is None or is_fixed(plan) else with_micro(plan, decided)


def at_start(plan: Plan, file: Path, output: Output) -> Plan:
    """The launcher's plan: with the micro-batch that an earlier start of this run came to, else (for `auto`, where there are GPUs) with
    the largest that `debzero plan` expects to fit."""
    if is_fixed(plan):
        return plan
    automatic = plan.job.train.micro_batch == "auto"
    before = read_json(output.status_file).get("micro_batch")
    if before:
        if before < plan.batch.micro and not automatic:
            print(f"memory ran out before: going on with a micro-batch of at most {before}", flush=True)
        return with_micro(plan, before if automatic else min(before, plan.batch.micro))
    found = predicted(plan, file) if automatic and plan.host.gpus else None
    return with_micro(plan, found) if found else plan


def after_failure(plan: Plan, output: Output) -> Optional[Plan]:
    """The plan to go on with when the ranks ran out of memory in a step: at most half the micro-batch. None for other failures, and
    where there is nothing to halve."""
    if not read_json(output.first_error).get("memory") or is_fixed(plan) or plan.batch.micro == 1:
        return None
    smaller = with_micro(plan, plan.batch.micro // 2)
    print(f"out of memory with a micro-batch of {plan.batch.micro}: going on with {smaller.batch}", flush=True)
    output.first_error.unlink(missing_ok=True)
    output.update(state="preparing", micro_batch=smaller.batch.micro)
    return smaller
